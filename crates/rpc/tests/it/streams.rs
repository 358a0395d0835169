//! Byte streams.

use bytes::Bytes;
use rpc::{FaultKind, Lane};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{AMPLE, Cluster, serve};

#[tokio::test]
async fn bytes_flow_both_ways_until_one_side_is_done() {
    let cluster = Cluster::new();
    let (server, _probe) = serve(&cluster.node(1)).await;
    let hello = Bytes::from_static(b"hello ");
    let stream =
        cluster.client(2).open_stream(1, server.local_addr(), Lane::Bulk, "/echo", hello, AMPLE).await.unwrap();
    let (mut from, mut to) = tokio::io::split(stream);

    let sent: Vec<u8> = (0..4u32 << 20).map(|i| ((i * 7) >> 3) as u8).collect();
    let send = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, ()) = tokio::join!(async { from.read_to_end(&mut back).await.unwrap() }, send);
    assert_eq!(&back[..6], b"hello ");
    assert!(back[6..] == sent, "{} bytes came back", back.len());
}

#[tokio::test]
async fn a_keystroke_comes_back_without_waiting_for_more() {
    let cluster = Cluster::new();
    let (server, _probe) = serve(&cluster.node(1)).await;
    let client = cluster.client(2);
    let mut stream =
        client.open_stream(1, server.local_addr(), Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();
    for key in *b"df\r" {
        stream.write_all(&[key]).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), key);
    }
}

#[tokio::test]
async fn a_stream_can_be_refused_with_a_reason_and_the_connection_is_no_worse_for_it() {
    let cluster = Cluster::new();
    let (server, _probe) = serve(&cluster.node(1)).await;
    let (client, addr) = (cluster.client(2), server.local_addr());
    let error = client.open_stream(1, addr, Lane::Control, "/vm9", Bytes::new(), AMPLE).await.unwrap_err();
    let fault = error.fault().unwrap();
    assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::NotFound, "no such console: /vm9"));
    client.call(1, addr, Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();
}

#[tokio::test]
async fn a_removed_node_loses_its_streams() {
    let cluster = Cluster::new();
    let (server, probe) = serve(&cluster.node(1)).await;
    let client = cluster.client(2);
    let mut stream =
        client.open_stream(1, server.local_addr(), Lane::Control, "/echo", Bytes::new(), AMPLE).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');

    probe.remove_the_caller();
    server.recheck();
    let ended = stream.read(&mut [0; 1]).await;
    assert!(!matches!(ended, Ok(n) if n > 0), "{ended:?}");
}
