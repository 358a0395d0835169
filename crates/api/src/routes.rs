//! The routes.

use std::sync::Arc;

use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Request as HttpRequest, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use jobs::{Console, Handle};
use opcodes::Failure;
use opcodes::wire::{CALL_PATH, CONSOLE_PATH, CONSOLE_PROTOCOL, Request};
use serde_json::Value;

use crate::access::{Caller, changes, conceal, describe};
use crate::refusal::Refusal;

/// Where the node's own status is.
pub const STATUS_PATH: &str = "/cardume/1/status";

/// Bytes that the body of a request has at the most.
pub const BODY_LIMIT: usize = 4 << 20;

/// The API's routes. Each request needs a [`Caller`] in its extensions, and is refused without.
pub fn router(handle: Arc<dyn Handle>) -> Router {
    Router::new()
        .route(CALL_PATH, post(call))
        .route(STATUS_PATH, get(status))
        .route(&format!("{CONSOLE_PATH}/{{instance}}"), post(console))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(handle)
}

async fn call(
    State(handle): State<Arc<dyn Handle>>,
    caller: Caller,
    body: Result<axum::body::Bytes, BytesRejection>,
) -> Result<Json<Value>, Refusal> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::not_understood(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("The request is larger than {} MiB", BODY_LIMIT >> 20),
        ),
        status => Refusal::not_understood(status, format!("The request can't be read: {}", error.body_text())),
    })?;
    let request: Request = serde_json::from_slice(&body).map_err(|error| {
        Refusal::not_understood(StatusCode::BAD_REQUEST, format!("The request is not understood: {error}"))
    })?;
    answer(handle, caller, request).await.map(Json)
}

async fn status(State(handle): State<Arc<dyn Handle>>, caller: Caller) -> Result<Json<Value>, Refusal> {
    answer(handle, caller, Request::Status).await.map(Json)
}

/// Answers a request, if the caller may ask it, and keeps a record.
async fn answer(handle: Arc<dyn Handle>, caller: Caller, request: Request) -> Result<Value, Refusal> {
    let what = describe(&request);
    let changing = changes(&request);
    record(&caller, &what, changing);
    let result = match caller.permit(&what, changing) {
        Err(refusal) => Err(refusal),
        Ok(()) if changing => {
            // In a task of its own: a caller who goes away must not leave a change half done.
            let name = caller.name.clone();
            match tokio::spawn(async move { handle.call(request, &name).await }).await {
                Ok(result) => result.map_err(Refusal::from),
                Err(error) => {
                    tracing::error!(%error, request = what, "ended in a bug");
                    Err(Refusal::from(Failure::failed("The daemon failed on the way; its log says more")))
                }
            }
        }
        Ok(()) => match handle.call(request.clone(), &caller.name).await {
            Ok(mut reply) => {
                if !caller.may_change {
                    conceal(&request, &mut reply);
                }
                Ok(reply)
            }
            Err(failure) => Err(Refusal::from(failure)),
        },
    };
    if let Err(refusal) = &result {
        tracing::info!(target: "audit", user = caller.name, request = what, failure = refusal.failure().text, "refused");
    }
    result
}

/// Records who asks for what, before it is done: what the daemon dies of is in the log too.
fn record(caller: &Caller, what: &str, changing: bool) {
    if changing {
        tracing::info!(target: "audit", user = caller.name, request = what, "asked");
    } else {
        tracing::debug!(target: "audit", user = caller.name, request = what, "asked");
    }
}

async fn console(
    State(handle): State<Arc<dyn Handle>>,
    caller: Caller,
    instance: Result<Path<String>, PathRejection>,
    mut request: HttpRequest,
) -> Result<Response, Refusal> {
    let Path(instance) = instance.map_err(|error| Refusal::not_understood(error.status(), error.body_text()))?;
    let what = format!("console {instance}");
    // Who types into a guest changes it.
    record(&caller, &what, true);
    caller.permit(&what, true)?;
    let upgrade =
        if asks_for_console(request.headers()) { request.extensions_mut().remove::<OnUpgrade>() } else { None };
    let Some(upgrade) = upgrade else {
        let text = format!("A console needs an upgrade of the connection to '{CONSOLE_PROTOCOL}'");
        return Err(Refusal::not_understood(StatusCode::UPGRADE_REQUIRED, text));
    };
    let console = handle.console(&instance, &caller.name).await.inspect_err(|failure| {
        tracing::info!(target: "audit", user = caller.name, request = what, failure = failure.text, "refused");
    })?;
    tokio::spawn(async move {
        let ended = connect(upgrade, console).await;
        tracing::debug!(target: "audit", user = caller.name, request = what, ?ended, "ended");
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, CONSOLE_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

fn asks_for_console(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|wanted| wanted.as_bytes().eq_ignore_ascii_case(CONSOLE_PROTOCOL.as_bytes()))
}

/// Moves bytes both ways until either side ends. A guest never ends by itself, so the end of what the client sends has to end
/// the console: else one whose client went away would stay open until the guest prints something.
async fn connect(upgrade: OnUpgrade, console: Box<dyn Console>) -> std::io::Result<u64> {
    let client = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_guest, mut to_guest) = tokio::io::split(console);
    tokio::select! {
        ended = tokio::io::copy(&mut from_client, &mut to_guest) => ended,
        ended = tokio::io::copy(&mut from_guest, &mut to_client) => ended,
    }
}

async fn no_such_path(request: HttpRequest) -> Refusal {
    Refusal::not_understood(StatusCode::NOT_FOUND, format!("There is nothing at '{}'", request.uri().path()))
}

async fn wrong_method(request: HttpRequest) -> Refusal {
    let text = format!("'{}' does not take the method {}", request.uri().path(), request.method());
    Refusal::not_understood(StatusCode::METHOD_NOT_ALLOWED, text)
}
