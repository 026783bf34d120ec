//! A group whose members and clients know each other by certificates.

use super::*;
use crate::client::Client;
use crate::types::Consistency;
use crate::wire::Tls;
use crate::wire::tests::authority::{Authority, MEMBER};
use futures::future::try_join_all;

struct Group {
    folder: tempfile::TempDir,
    addresses: Vec<String>,
    nodes: Vec<Node>,
}

impl Group {
    async fn start(tls: &[Tls]) -> Self {
        let ports: Vec<_> =
            tls.iter().map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<String> =
            ports.iter().map(|port| port.local_addr().unwrap().to_string()).collect();
        drop(ports);
        let mut group = Self { folder: tempfile::tempdir().unwrap(), addresses, nodes: Vec::new() };
        let starts =
            (0..tls.len()).map(|n| group.builder(n, &tls[n]).form(group.addresses.clone()));
        group.nodes = timeout(LONG, try_join_all(starts)).await.expect("it hangs").unwrap();
        for node in &group.nodes {
            timeout(LONG, node.ready()).await.expect("it hangs").unwrap();
        }
        group
    }

    fn builder(&self, n: usize, tls: &Tls) -> NodeBuilder {
        Node::builder(self.folder.path().join(n.to_string()))
            .listen(&*self.addresses[n])
            .heartbeat(HEARTBEAT)
            .map_size(64 << 20)
            .snapshot_every(50)
            .tls(tls.clone())
    }

    async fn shutdown(self) {
        for node in self.nodes {
            node.shutdown().await.unwrap();
        }
    }
}

/// Raft traffic, forwarded writes, snapshots and clients, all of it encrypted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_with_certificates_forms_serves_grows_and_comes_back() {
    let authority = Authority::new();
    let tls: Vec<Tls> = ["a", "b", "c"].map(|file| authority.as_new(file, &[MEMBER])).into();
    let mut group = Group::start(&tls).await;
    let worker = authority.as_new("worker", &["worker.example.com"]);
    let connect =
        |tls: Tls| Client::builder().endpoints(group.addresses.clone()).tls(tls).connect();
    let client = connect(worker).await.unwrap();
    let mut watch = client.watch("k").await.unwrap();
    for node in &group.nodes {
        node.client().put("k", "v").await.unwrap();
        watch.recv().await.unwrap();
    }
    let kv = client.get("k").await.unwrap().unwrap();
    assert_eq!(kv.version, 3);

    // Those who are not let in are told why, before anything of theirs is done.
    let others = Authority::new();
    others.issue("worker", &["worker.example.com"]);
    for tls in [authority.anonymous(), others.as_one("worker")] {
        let error = connect(tls).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    }
    let plain = Client::connect(group.addresses.clone()).await.unwrap_err();
    assert_eq!(plain.kind(), ErrorKind::Unavailable, "{plain}");

    // One more joins, by a snapshot, and only with the certificate of a member.
    for n in 0..120 {
        client.put(format!("n/{n}"), vec![7; 1000]).await.unwrap();
    }
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    group.addresses.push(address.to_string());
    let seeds = &group.addresses[..3];
    let plain = Node::builder(group.folder.path().join("plain"))
        .listen(&*group.addresses[3])
        .heartbeat(HEARTBEAT)
        .patience(Duration::from_millis(300));
    let error = timeout(LONG, plain.join(seeds)).await.expect("it hangs").unwrap_err();
    assert!(matches!(error.reason(), Reason::Unreachable { .. }), "{error:?}");
    let joining = group.builder(3, &authority.as_new("d", &[MEMBER])).join(seeds);
    let joined = timeout(LONG, joining).await.expect("it hangs").unwrap();
    timeout(LONG, joined.ready()).await.expect("it hangs").unwrap();
    let local = joined.client().range(..).consistency(Consistency::Serializable).await.unwrap();
    assert_eq!(local.count, 121);
    group.nodes.push(joined);
    group.shutdown().await;
}

/// A node says at once what the others would not take.
#[tokio::test]
async fn a_node_does_not_start_with_the_certificate_of_a_client() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let worker = authority.as_new("worker", &["worker.example.com"]);
    let node = Node::builder(folder.path()).listen("127.0.0.1:0").tls(worker).solo().await;
    let error = node.unwrap_err();
    assert!(matches!(error.reason(), Reason::BadOption { .. }), "{error:?}");
    assert!(error.to_string().contains(MEMBER), "{error}");
}

/// Whoever says both may not be heard in the clear because of the order in which he says it.
#[tokio::test]
async fn certificates_and_plain_text_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let tls = || crate::wire::Tls::new(folder.path().join("ca.pem"));
    let builder = || Node::builder(folder.path().join("data")).listen("127.0.0.1:0");
    for both in [builder().tls(tls()).plaintext(), builder().plaintext().tls(tls()).plaintext()] {
        let error = both.solo().await.unwrap_err();
        assert!(matches!(error.reason(), Reason::BadOption { .. }), "{error}");
    }
    let client = || Client::builder().endpoints(["127.0.0.1:1"]);
    for both in [client().tls(tls()).plaintext(), client().plaintext().tls(tls())] {
        let error = both.connect().await.unwrap_err();
        assert!(matches!(error.reason(), Reason::BadOption { .. }), "{error}");
    }
}
