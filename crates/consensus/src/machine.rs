//! The state machine: applies committed proposals to [`model::State`] and publishes the result.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;

use futures::{Stream, TryStreamExt as _};
use model::State;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use openraft::{AsyncRuntime, EntryPayload, OptionalSend};
use tokio::sync::watch;

use crate::log::View;
use crate::store::{SavedSnapshot, Store};
use crate::types::{LogId, Response, SnapshotMeta, StoredMembership, Types};

/// The state and where in the log it stands. Only the last snapshot of it is on disk: at start the log is applied again.
pub(crate) struct Machine<Rt> {
    store: Store,
    /// Owner of the state. As long as nobody holds the `Arc` that he once read here, it is changed in place.
    view: watch::Sender<View>,
    last: Option<LogId>,
    membership: StoredMembership,
    runtime: PhantomData<fn() -> Rt>,
}

/// A view of the state that a snapshot is made from.
pub(crate) struct Builder<Rt> {
    store: Store,
    snapshot: SavedSnapshot,
    runtime: PhantomData<fn() -> Rt>,
}

impl<Rt: AsyncRuntime> Machine<Rt> {
    /// The state as of the last snapshot.
    pub(crate) fn restore(store: Store) -> io::Result<Self> {
        let saved = store.read_snapshot()?.unwrap_or_default();
        let machine = Self {
            store,
            view: watch::Sender::new(View::default()),
            last: None,
            membership: StoredMembership::default(),
            runtime: PhantomData,
        };
        Ok(machine.replaced_by(saved))
    }

    fn replaced_by(mut self, saved: SavedSnapshot) -> Self {
        self.replace(saved);
        self
    }

    fn replace(&mut self, saved: SavedSnapshot) {
        let SavedSnapshot { last, membership, state } = saved;
        self.last = last;
        self.membership = membership;
        self.view.send_replace(view(last, state));
    }

    /// Follows the state.
    pub(crate) fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    fn saved(&self) -> SavedSnapshot {
        SavedSnapshot {
            last: self.last,
            membership: self.membership.clone(),
            state: Arc::clone(&self.view.borrow().state),
        }
    }

    /// Follows the state into a new incarnation (`init`, forced recovery). Durable before anybody is told about the
    /// entry that did it, so that this node never again speaks in an older one.
    async fn follow_incarnation(&self) -> io::Result<()> {
        let incarnation = self.view.borrow().state.incarnation;
        if incarnation.n > self.store.incarnation().n {
            self.store.set_incarnation(incarnation).await?;
        }
        Ok(())
    }
}

fn view(last: Option<LogId>, state: Arc<State>) -> View {
    View { index: last.map_or(0, |id| id.index), term: last.map_or(0, |id| id.committed_leader_id().term), state }
}

impl<Rt: AsyncRuntime> RaftStateMachine<Types<Rt>> for Machine<Rt> {
    type SnapshotData = Arc<State>;
    type SnapshotBuilder = Builder<Rt>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types<Rt>>>> + Unpin + OptionalSend,
    {
        let batch: Vec<_> = entries.try_collect().await?;
        let mut answers = Vec::with_capacity(batch.len());
        self.view.send_modify(|view| {
            let state = Arc::make_mut(&mut view.state);
            for (entry, responder) in batch {
                let response = match entry.payload {
                    EntryPayload::Blank => Response(Ok(Vec::new())),
                    EntryPayload::Normal(request) => Response(state.apply(&request.0)),
                    EntryPayload::Membership(membership) => {
                        self.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Response(Ok(Vec::new()))
                    }
                };
                self.last = Some(entry.log_id);
                view.index = entry.log_id.index;
                view.term = entry.log_id.committed_leader_id().term;
                answers.extend(responder.map(|responder| (responder, response)));
            }
        });
        self.follow_incarnation().await?;
        // After publishing: who is answered reads his own change.
        for (responder, response) in answers {
            responder.send(response);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<Rt> {
        Builder { store: self.store.clone(), snapshot: self.saved(), runtime: PhantomData }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, state: Arc<State>) -> io::Result<()> {
        let saved = SavedSnapshot { last: meta.last_log_id, membership: meta.last_membership.clone(), state };
        self.store.save_snapshot(saved.clone()).await?;
        self.replace(saved);
        self.follow_incarnation().await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types<Rt>, Arc<State>>>> {
        Ok(self.store.read_snapshot()?.map(snapshot::<Rt>))
    }
}

impl<Rt: AsyncRuntime> RaftSnapshotBuilder<Types<Rt>> for Builder<Rt> {
    type SnapshotData = Arc<State>;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types<Rt>, Arc<State>>> {
        self.store.save_snapshot(self.snapshot.clone()).await?;
        Ok(snapshot::<Rt>(self.snapshot.clone()))
    }
}

fn snapshot<Rt: AsyncRuntime>(saved: SavedSnapshot) -> SnapshotOf<Types<Rt>, Arc<State>> {
    SnapshotOf::<Types<Rt>, Arc<State>> {
        meta: SnapshotMeta { last_log_id: saved.last, last_membership: saved.membership },
        snapshot: saved.state,
    }
}
