use quorate::*;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn solo_writes_and_reads() {
    let folder = tempfile::tempdir().unwrap();
    let t = Instant::now();
    let node = Node::builder(folder.path()).solo().await.unwrap();
    eprintln!("solo up {:?}", t.elapsed());
    let client = node.client();
    let t = Instant::now();
    for i in 0..100 {
        client.put(format!("k{i}"), "v").await.unwrap();
    }
    eprintln!("100 puts {:?}", t.elapsed());
    assert_eq!(client.range("k".."l").await.unwrap().count, 100);
    let t = Instant::now();
    node.shutdown().await.unwrap();
    eprintln!("down {:?}", t.elapsed());
    let node = Node::builder(folder.path()).solo().await.unwrap();
    assert_eq!(node.client().range("k".."l").await.unwrap().count, 100);
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn three() {
    let folder = tempfile::tempdir().unwrap();
    let ports: Vec<_> =
        (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addrs: Vec<String> = ports.iter().map(|p| p.local_addr().unwrap().to_string()).collect();
    drop(ports);
    let t = Instant::now();
    let nodes = futures::future::join_all(addrs.iter().enumerate().map(|(i, a)| {
        Node::builder(folder.path().join(i.to_string())).listen(a).form(addrs.clone())
    }))
    .await;
    let nodes: Vec<Node> = nodes.into_iter().map(|n| n.unwrap()).collect();
    eprintln!("formed {:?}", t.elapsed());
    for n in &nodes {
        n.ready().await.unwrap();
    }
    eprintln!("ready {:?}", t.elapsed());
    for n in &nodes {
        let t = Instant::now();
        for i in 0..50 {
            n.client().put(format!("k{i}"), "v").await.unwrap();
        }
        eprintln!("50 puts {:?} {:?}", t.elapsed(), n.status().leader);
    }
    for n in &nodes {
        let t = Instant::now();
        for _ in 0..50 {
            assert_eq!(n.client().range("k".."l").await.unwrap().count, 50);
        }
        eprintln!("50 lin ranges {:?}", t.elapsed());
    }
    let mut watch = nodes[1].client().watch("w").await.unwrap();
    nodes[2].client().put("w", "x").await.unwrap();
    eprintln!(
        "{:?}",
        tokio::time::timeout(Duration::from_secs(5), watch.recv()).await.unwrap().unwrap()
    );
    let s = nodes[0].client().session(Duration::from_secs(4)).await.unwrap();
    assert!(s.is_alive());
    drop(watch);
    drop(s);
    for n in nodes {
        let t = Instant::now();
        n.shutdown().await.unwrap();
        eprintln!("down {:?}", t.elapsed());
    }
}
