//! Who is let in with which certificate, and who is not.

use super::authority::{Authority, MEMBER as MEMBER_NAME};
use super::*;
use std::fs;

const CLIENT: &[&str] = &["worker.example.com"];

async fn server(tls: &Tls) -> Kit {
    tls.check().unwrap();
    Kit::with("127.0.0.1:0", Security::Tls(tls.clone()), Bounds::default()).await
}

fn client(kit: &Kit, tls: &Tls) -> RpcClient {
    let security = Security::Tls(tls.clone());
    RpcClient::new(kit.address.clone(), Endpoint::client(), security, Handle::current())
}

fn peer(kit: &Kit, tls: &Tls) -> PeerClient {
    let security = Security::Tls(tls.clone());
    let introduce = Arc::new(|| (MEMBER, hello()));
    PeerClient::new(PeerKind::Raft, kit.address.clone(), security, introduce)
}

async fn call(mut peer: PeerClient) -> Result<Bytes, Error> {
    peer.call(1, Bytes::from_static(b"append"), LONG).await
}

/// Why a call was not let in. Nothing of it has happened.
fn refusal(answer: Result<Bytes, Error>) -> String {
    let error = answer.expect_err("nobody is let in");
    assert_eq!(error.kind(), crate::error::ErrorKind::Unauthenticated, "{error}");
    assert!(!error.is_retryable() && !error.may_have_applied());
    error.to_string()
}

/// Frames of all sizes go through, in both directions.
#[tokio::test(flavor = "multi_thread")]
async fn members_and_clients_of_the_authority_are_served() {
    let authority = Authority::new();
    let member = authority.as_new("member", &[MEMBER_NAME, "a.example.com"]);
    let kit = server(&member).await;
    let worker = client(&kit, &authority.as_new("worker", CLIENT));
    assert_eq!(say(&worker, "hello").await.unwrap(), "hello");
    let large = "x".repeat(3_000_000);
    assert_eq!(say(&worker, &large).await.unwrap(), large);
    let many = (0..200).map(|n| {
        let worker = worker.clone();
        async move {
            let text = "y".repeat(n * 311);
            assert_eq!(say(&worker, &text).await.unwrap(), text);
        }
    });
    futures::future::join_all(many).await;
    assert_eq!(call(peer(&kit, &member)).await.unwrap(), "append");
    kit.server.shutdown(LONG).await;
}

/// A client's certificate is good, and is not enough for what members say to each other.
#[tokio::test(flavor = "multi_thread")]
async fn raft_traffic_needs_the_certificate_of_a_member() {
    let authority = Authority::new();
    let kit = server(&authority.as_new("member", &[MEMBER_NAME])).await;
    let worker = authority.as_new("worker", CLIENT);
    let refused = refusal(call(peer(&kit, &worker)).await);
    assert!(refused.contains("not that of a member"), "{refused}");
    // Nor may one call as a member on another kind of connection.
    let security = Security::Tls(worker.clone());
    let posing = RpcClient::new(kit.address.clone(), MEMBER, security, Handle::current());
    refusal(say(&posing, "hello").await);
    assert!(kit.stage.seen.lock().unwrap().is_empty(), "no message of it was handled");
    kit.server.shutdown(LONG).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_needs_a_certificate_unless_it_may_do_without() {
    let authority = Authority::new();
    let member = authority.as_new("member", &[MEMBER_NAME]);
    let kit = server(&member).await;
    let refused = refusal(say(&client(&kit, &authority.anonymous()), "hello").await);
    assert!(refused.contains("CertificateRequired"), "{refused}");
    kit.server.shutdown(LONG).await;

    let kit = server(&member.anonymous_clients()).await;
    assert_eq!(say(&client(&kit, &authority.anonymous()), "hello").await.unwrap(), "hello");
    // But not to be a member, nor with a bad one.
    refusal(call(peer(&kit, &authority.anonymous())).await);
    let other = Authority::new();
    let stranger = other.as_new("worker", CLIENT);
    fs::copy(authority.path("ca.pem"), other.path("ca.pem")).unwrap();
    // He would know it himself.
    assert!(reason_of(stranger.check()).to_string().contains("not of the authority"));
    refusal(say(&client(&kit, &stranger.unchecked()), "hello").await);
    kit.server.shutdown(LONG).await;
}

/// Whose time is over, who is of another authority, and who is no member: a client does not talk to them.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_talks_to_members_only() {
    let (authority, other) = (Authority::new(), Authority::new());
    let worker = authority.as_new("worker", CLIENT);
    authority.issue_expired("expired", &[MEMBER_NAME]);
    for (tls, why) in [
        (authority.as_one("expired"), "expired"),
        (other.as_new("member", &[MEMBER_NAME]), "invalid peer certificate"),
        (authority.as_new("server", &["127.0.0.1", "a.example.com"]), "not valid for name"),
    ] {
        let kit = server(&tls).await;
        let refused = refusal(say(&client(&kit, &worker), "hello").await);
        assert!(refused.contains(why), "{refused}");
        assert!(refused.contains(&kit.address), "{refused}");
        kit.server.shutdown(LONG).await;
    }
    // The time of a client's own is over.
    let kit = server(&authority.as_new("member", &[MEMBER_NAME])).await;
    let refused = refusal(say(&client(&kit, &authority.as_one("expired")), "hello").await);
    assert!(refused.contains("CertificateExpired"), "{refused}");
    kit.server.shutdown(LONG).await;
}

/// Members whose certificates are for their hosts only.
#[tokio::test(flavor = "multi_thread")]
async fn any_of_several_names_makes_a_member() {
    let authority = Authority::new();
    let names = ["a.example.com", "127.0.0.1"];
    let first = authority.as_new("a", &["a.example.com"]).member_names(names);
    let second = authority.as_new("b", &["127.0.0.1"]).member_names(names);
    for (own, other) in [(&first, &second), (&second, &first)] {
        own.clone().of_member().check().unwrap();
        let kit = server(own).await;
        assert_eq!(call(peer(&kit, other)).await.unwrap(), "append");
        kit.server.shutdown(LONG).await;
    }
}

/// One side encrypts and the other does not: an error that comes at once, and not when the time is up.
#[tokio::test(flavor = "multi_thread")]
async fn plain_text_and_tls_do_not_meet() {
    let authority = Authority::new();
    let kit = server(&authority.as_new("member", &[MEMBER_NAME])).await;
    let plain = client_of(&kit.address);
    assert!(matches!(reason_of(say(&plain, "hello").await), Reason::Unreachable { .. }));
    kit.server.shutdown(LONG).await;
    let kit = Kit::new().await;
    let worker = client(&kit, &authority.as_new("worker", CLIENT));
    assert!(matches!(reason_of(say(&worker, "hello").await), Reason::Unreachable { .. }));
    kit.server.shutdown(LONG).await;
}

/// All of them are replaced, one after the other, while calls go on: an open connection lives on, and a new one goes by the
/// new ones as soon as they make sense together.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_in_use() {
    let mut authority = Authority::new();
    let member =
        authority.as_new("member", &[MEMBER_NAME]).of_member().looking_every(Duration::ZERO);
    let worker = authority.as_new("worker", CLIENT).looking_every(Duration::ZERO);
    // A member that has read its files once and for all, and so goes by them as they were.
    let peers = authority.as_new("peer", &[MEMBER_NAME]).looking_every(LONG);
    peers.check().unwrap();
    let kit = server(&member).await;
    let old = client(&kit, &worker);
    assert_eq!(say(&old, "before").await.unwrap(), "before");

    // What a start would refuse changes nothing: another authority, of which the own certificate is not; half of a file;
    // no file; a certificate that is no member's. Whoever has one of the old authority is let in all the time.
    let (ca, pem, key) =
        (authority.path("ca.pem"), authority.path("member.pem"), authority.path("member.key"));
    let kept = [&ca, &pem, &key].map(|path| fs::read(path).unwrap());
    let restore = || {
        for (path, bytes) in [&ca, &pem, &key].into_iter().zip(&kept) {
            fs::write(path, bytes).unwrap();
        }
    };
    let is_let_in = async || assert_eq!(call(peer(&kit, &peers)).await.unwrap(), "append");
    let other = Authority::new();
    fs::copy(other.path("ca.pem"), &ca).unwrap();
    is_let_in().await;
    restore();
    fs::write(&pem, &kept[1][..kept[1].len() / 2]).unwrap();
    is_let_in().await;
    fs::remove_file(&key).unwrap();
    is_let_in().await;
    restore();
    authority.issue("member", CLIENT);
    is_let_in().await;
    restore();

    // Both authorities, then new certificates, then the new authority alone.
    authority.renew();
    let new = fs::read(&ca).unwrap();
    fs::write(&ca, [&kept[0][..], &new[..]].concat()).unwrap();
    is_let_in().await;
    let early = authority.as_new("early", CLIENT).looking_every(Duration::ZERO);
    // It does not know the old one, whose certificate the member still shows.
    fs::write(authority.path("new.pem"), &new).unwrap();
    let strict = Tls::new(authority.path("new.pem"))
        .identity(authority.path("early.pem"), authority.path("early.key"));
    refusal(say(&client(&kit, &strict), "hello").await);
    assert_eq!(say(&client(&kit, &early), "hello").await.unwrap(), "hello");
    authority.issue("member", &[MEMBER_NAME]);
    authority.issue("worker", CLIENT);
    assert_eq!(say(&client(&kit, &strict), "hello").await.unwrap(), "hello");
    fs::write(&ca, &new).unwrap();
    assert_eq!(say(&client(&kit, &worker), "hello").await.unwrap(), "hello");
    assert_eq!(call(peer(&kit, &member)).await.unwrap(), "append");
    assert_eq!(say(&old, "after").await.unwrap(), "after");
    kit.server.shutdown(LONG).await;
}

/// What is wrong with the files is said before anything is opened.
#[tokio::test]
async fn files_that_make_no_sense_are_named() {
    let authority = Authority::new();
    authority.issue("member", &[MEMBER_NAME]);
    authority.issue("other", &[MEMBER_NAME]);
    let path = |file: &str| authority.path(file);
    fs::write(path("empty.pem"), "").unwrap();
    fs::write(path("odd.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    let member = || authority.as_one("member");
    for (tls, text) in [
        (Tls::new(path("none.pem")), "cannot read"),
        (Tls::new(path("empty.pem")), "empty.pem has no certificate"),
        (Tls::new(path("odd.pem")), "odd.pem"),
        (authority.anonymous().identity(path("none.pem"), path("member.key")), "none.pem"),
        (authority.anonymous().identity(path("member.pem"), path("other.key")), "go together"),
        (authority.anonymous().identity(path("member.pem"), path("ca.pem")), "no private key"),
        (member().member_names(["not a name"]), "no name of members"),
        (member().member_names([] as [&str; 0]), "members need a name"),
    ] {
        let reason = reason_of(tls.check());
        let Reason::BadOption { detail } = reason else { panic!("{reason:?}") };
        assert!(detail.contains(text), "{detail}");
    }
    authority.issue_for_calling("caller", &[MEMBER_NAME]);
    for (tls, text) in [
        (authority.anonymous(), "identity()"),
        (authority.as_one("caller"), "caller.pem is not one to be called with"),
        (authority.as_new("worker", CLIENT), "none of the names of members"),
    ] {
        tls.check().unwrap();
        let reason = reason_of(tls.of_member().check());
        let Reason::BadOption { detail } = reason else { panic!("{text}") };
        assert!(detail.contains(text), "{detail}");
    }
    member().of_member().check().unwrap();
    assert!(!format!("{:?}", member()).contains("PRIVATE"), "no key in the logs");
}

/// Whoever connects and then says nothing holds a place of a handshake for its time, and nobody else up.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_cut_off() {
    let authority = Authority::new();
    let member = authority.as_new("member", &[MEMBER_NAME]);
    member.check().unwrap();
    let security = Security::Tls(member);
    let bounds = Bounds { handshake: SHORT, ..Bounds::default() };
    let kit = Kit::with("127.0.0.1:0", security, bounds).await;
    let mut silent = kit.raw().await;
    is_closed(&mut silent).await;
    let mut odd = kit.raw().await;
    odd.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    // An alert, and the end.
    let _ = tokio::time::timeout(LONG, odd.read_to_end(&mut said)).await.expect("it ends");
    kit.server.shutdown(LONG).await;
}
