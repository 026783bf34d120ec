//! Calls of kind Rpc.

use super::*;

#[tokio::test]
async fn calls_come_back_each_to_its_caller() {
    let kit = Kit::new().await;
    let client = kit.client();
    let texts: Vec<String> = (0..50).map(|number| format!("call {number}")).collect();
    let answers = futures::future::join_all(texts.iter().map(|text| say(&client, text))).await;
    for (text, answer) in texts.iter().zip(answers) {
        assert_eq!(answer.unwrap(), text);
    }
    assert_eq!(client.group(), GROUP);
    assert_eq!(kit.stage.services.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn follows_and_keep_alives_have_a_connection_of_their_own() {
    let kit = Kit::new().await;
    let client = kit.client();
    say(&client, "call").await.unwrap();
    assert_eq!(kit.stage.services.load(Ordering::SeqCst), 1);
    let keep_alive = Request::KeepAlive { leases: Vec::new(), forwarded: false };
    let _ = ask(&client, keep_alive, LONG).await;
    assert_eq!(kit.stage.services.load(Ordering::SeqCst), 2);
    let waiting = ask(&client, follow(), LONG);
    let other = async {
        kit.stage.entered.wait().await;
        assert_eq!(kit.stage.services.load(Ordering::SeqCst), 2);
        kit.stage.gate.raise();
    };
    futures::join!(waiting, other).0.unwrap();
}

#[tokio::test]
async fn an_error_of_the_handler_is_the_answer() {
    let kit = Kit::new().await;
    assert_eq!(reason_of(say(&kit.client(), "refuse").await), Reason::LeaderChanged);
}

/// `Closed` is what a client says of itself; that the other end closes leaves the client as it is.
#[tokio::test]
async fn a_node_that_was_shut_down_is_unreachable() {
    let kit = Kit::new().await;
    let reason = reason_of(say(&kit.client(), "closed").await);
    assert!(matches!(reason, Reason::Unreachable { .. }), "{reason:?}");
}

#[tokio::test]
async fn a_handler_that_panics_is_answered_for() {
    let kit = Kit::new().await;
    let client = kit.client();
    let reason = reason_of(say(&client, "panic").await);
    assert_eq!(reason, Reason::AssertionFailed { detail: "as asked".into() });
    say(&client, "still here").await.unwrap();
    assert_eq!(kit.stage.services.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_response_that_is_too_large_fails_alone() {
    let kit = Kit::new().await;
    let client = kit.client();
    let limit = limits::RPC_RESPONSE_BYTES_MAX as u64;
    let error = say(&client, "large").await.unwrap_err();
    assert_eq!(*error.reason(), Reason::ResultTooLarge { limit });
    assert!(!error.may_have_applied());
    let write = Request::Propose { proposals: Vec::new(), forwarded: true };
    let error = ask(&client, write, LONG).await.unwrap_err();
    assert_eq!(*error.reason(), Reason::ResultTooLarge { limit });
    assert!(error.may_have_applied());
    say(&client, "still here").await.unwrap();
    assert_eq!(kit.stage.services.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_that_is_too_large_fails_alone_and_unsent() {
    let kit = Kit::new().await;
    let client = kit.client();
    let text = "x".repeat(limits::RPC_REQUEST_BYTES_MAX);
    assert!(matches!(reason_of(say(&client, &text).await), Reason::RequestTooLarge { .. }));
    assert_eq!(kit.stage.services.load(Ordering::SeqCst), 0);
    // Eight bytes of timeout and length come on top.
    let largest = &text[..limits::RPC_REQUEST_BYTES_MAX - 8];
    assert_eq!(say(&client, largest).await.unwrap(), largest);
}

#[tokio::test]
async fn a_huge_timeout_is_clamped() {
    let kit = Kit::new().await;
    let answer = ask(&kit.client(), founding("x"), Duration::MAX).await;
    assert!(matches!(answer, Ok(Response::Founding(_))));
    let mut socket = kit.greeted(Kind::Rpc).await;
    let body = encoded(&rpc_frame(3, 6, u32::MAX, &[]));
    socket.write_all(&body).await.unwrap();
    let response = read_frame(&mut socket).await.unwrap();
    assert_eq!((response.frame_type, response.id), (FrameType::Response, 3));
    kit.is_well().await;
}

#[tokio::test]
async fn a_deadline_ends_the_wait_on_both_sides() {
    let kit = Kit::new().await;
    let client = kit.client();
    let error = ask(&client, founding("gate"), SHORT).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::DeadlinePassed { waited } if *waited >= SHORT));
    assert!(!error.may_have_applied());
    kit.stage.dropped.wait().await;
    let error = ask(&client, write(), SHORT).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::DeadlinePassed { .. }));
    assert!(error.may_have_applied());
    kit.stage.dropped.wait().await;
    say(&client, "still here").await.unwrap();
}

#[tokio::test]
async fn a_caller_without_a_timer_of_its_own_is_told_when_its_time_is_over() {
    let kit = Kit::new().await;
    let mut socket = kit.greeted(Kind::Rpc).await;
    let body = [&[0, 0, 0, 4][..], b"gate"].concat();
    socket.write_all(&encoded(&rpc_frame(5, 8, 30, &body))).await.unwrap();
    let response = read_frame(&mut socket).await.unwrap();
    let answer =
        <Result<Response, Error> as crate::codec::layout::Layout>::from_bytes(response.payload);
    assert!(matches!(reason_of(answer.unwrap()), Reason::DeadlinePassed { .. }));
}

/// A member says of each call that its time is over. So it lives, and impatient callers do not cost their connection.
#[tokio::test]
async fn calls_that_take_too_long_leave_the_connection_as_it_is() {
    let kit = Kit::new().await;
    let client = kit.client();
    let began = tokio::time::Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let gate = ask(&client, founding("gate"), SHORT).await;
        assert!(matches!(reason_of(gate), Reason::DeadlinePassed { .. }));
    }
    say(&client, "something").await.unwrap();
    assert_eq!(kit.stage.services.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_dropped_call_drops_its_handler() {
    let kit = Kit::new().await;
    let client = kit.client();
    {
        let call = ask(&client, founding("gate"), LONG);
        let entered = std::pin::pin!(kit.stage.entered.wait());
        futures::future::select(std::pin::pin!(call), entered).await;
    }
    kit.stage.dropped.wait().await;
    say(&client, "still here").await.unwrap();
}

#[tokio::test]
async fn dropping_the_last_clone_closes_the_sockets() {
    let kit = Kit::new().await;
    let client = kit.client();
    say(&client, "x").await.unwrap();
    let call = client.clone();
    let call = tokio::task::JoinSet::from_iter([async move { say(&call, "gate").await }]);
    kit.stage.entered.wait().await;
    drop(client);
    // The call holds the client; without it nobody does.
    drop(call);
    kit.stage.dropped.wait().await;
    tasks_left(1).await;
}

#[tokio::test]
async fn too_many_calls_at_once_are_turned_away() {
    for (calls, follows) in [(1, 1), (1, 0)] {
        let kit = Kit::within(Bounds { calls, follows, ..Bounds::default() }).await;
        let client = kit.client();
        let waiting = say(&client, "gate");
        let others = async {
            kit.stage.entered.wait().await;
            assert_eq!(reason_of(say(&client, "x").await), Reason::TooManyRequests);
            kit.stage.gate.raise();
        };
        futures::join!(waiting, others).0.unwrap();
        say(&client, "now").await.unwrap();
    }
}

#[tokio::test]
async fn requests_have_a_budget_of_bytes() {
    let kit = Kit::within(Bounds { bytes_in_flight: 64 * 1024, ..Bounds::default() }).await;
    let client = kit.client();
    let waiting = say(&client, "gate");
    let others = async {
        kit.stage.entered.wait().await;
        let text = "x".repeat(64 * 1024);
        assert_eq!(reason_of(say(&client, &text).await), Reason::TooManyRequests);
        let text = "x".repeat(60 * 1024);
        say(&client, &text).await.unwrap();
        kit.stage.gate.raise();
    };
    futures::join!(waiting, others).0.unwrap();
    // An answer larger than all of the budget waits until nobody else has any, and passes.
    let limit = limits::RPC_RESPONSE_BYTES_MAX as u64;
    assert_eq!(reason_of(say(&client, "large").await), Reason::ResultTooLarge { limit });
}

#[tokio::test]
async fn a_refusal_is_typed_and_not_asked_for_again_at_once() {
    let kit = Kit::new().await;
    let expected = [
        (Status::NoCommonVersion, Reason::NoCommonVersion),
        (Status::WrongGroup, Reason::GroupMismatch),
        (Status::TimingDiffers, Reason::TimingDiffers),
        (Status::TooManyConnections, Reason::TooManyRequests),
        (Status::Starting, Reason::Starting),
    ];
    for (status, reason) in expected {
        *kit.stage.status.lock().unwrap() = status;
        let client = kit.client();
        let error = say(&client, "x").await.unwrap_err();
        assert_eq!(*error.reason(), reason);
        // It is remembered for a moment.
        *kit.stage.status.lock().unwrap() = Status::Ok;
        assert_eq!(reason_of(say(&client, "x").await), reason);
    }
}

#[tokio::test]
async fn another_group_is_refused() {
    let kit = Kit::new().await;
    let who = Endpoint { group: GROUP + 1, node: 0 };
    let client = RpcClient::new(kit.address.clone(), who, Security::Loopback, Handle::current());
    assert_eq!(reason_of(say(&client, "x").await), Reason::GroupMismatch);
    kit.is_well().await;
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_nothing_has_happened() {
    let kit = Kit::new().await;
    let Kit { server, address, .. } = kit;
    server.shutdown(LONG).await;
    let client = client_of(&address);
    for _ in 0..3 {
        let error = ask(&client, write(), LONG).await.unwrap_err();
        let detailed =
            matches!(error.reason(), Reason::Unreachable { detail } if detail.contains(&address));
        assert!(detailed, "{error}");
        assert!(!error.may_have_applied());
    }
}

#[tokio::test]
async fn one_who_listens_but_never_answers_is_unreachable() {
    let silent = bind("127.0.0.1:0", Security::Loopback).await.unwrap();
    let client = client_of(&silent.local_address().to_string());
    let error = ask(&client, write(), SHORT).await.unwrap_err();
    assert!(matches!(error.reason(), Reason::Unreachable { .. }), "{error}");
    assert!(!error.may_have_applied());
}

#[tokio::test]
async fn a_client_finds_a_server_that_came_back() {
    let kit = Kit::new().await;
    let client = kit.client();
    say(&client, "x").await.unwrap();
    let Kit { server, address, .. } = kit;
    server.shutdown(LONG).await;
    assert!(matches!(reason_of(say(&client, "x").await), Reason::Unreachable { .. }));
    let _kit = Kit::at(&address, Bounds::default()).await;
    let found = async {
        while say(&client, "x").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, found).await.unwrap();
}

/// The connection that a restart broke is replaced without the caller noticing.
#[tokio::test]
async fn a_restart_between_two_calls_goes_unnoticed() {
    let kit = Kit::new().await;
    let client = kit.client();
    say(&client, "x").await.unwrap();
    let Kit { server, address, .. } = kit;
    server.shutdown(LONG).await;
    let _kit = Kit::at(&address, Bounds::default()).await;
    ask(&client, founding("x"), LONG).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_the_outcome_of_writes_open() {
    let kit = Kit::new().await;
    let client = kit.client();
    let Kit { server, stage, .. } = kit;
    let calls = async { futures::join!(ask(&client, write(), LONG), say(&client, "gate")) };
    let breaks = async {
        stage.entered.wait().await;
        stage.entered.wait().await;
        drop(server);
    };
    let ((write, read), ()) = futures::join!(calls, breaks);
    let (write, read) = (write.unwrap_err(), read.unwrap_err());
    assert_eq!((write.reason(), read.reason()), (&Reason::ConnectionLost, &Reason::ConnectionLost));
    assert!(write.may_have_applied() && !read.may_have_applied());
}

#[tokio::test]
async fn a_caller_needs_no_runtime_of_its_own() {
    let kit = Kit::new().await;
    let client = kit.client();
    let elsewhere = tokio::task::spawn_blocking(move || {
        let bare = tokio::runtime::Builder::new_current_thread().build().unwrap();
        bare.block_on(async {
            assert_eq!(say(&client, "x").await.unwrap(), "x");
            reason_of(ask(&client, founding("gate"), SHORT).await)
        })
    });
    assert!(matches!(elsewhere.await.unwrap(), Reason::DeadlinePassed { .. }));
}

#[tokio::test]
async fn plain_text_to_others_is_refused_before_it_is_sent() {
    let who = Endpoint::client();
    let client = RpcClient::new("192.0.2.1:1".into(), who, Security::Loopback, Handle::current());
    assert!(matches!(reason_of(say(&client, "x").await), Reason::PlaintextRefused { .. }));
}

/// Whoever gives a call up hears whether it has left, as whoever has waited too long does.
#[tokio::test]
async fn a_call_that_is_given_up_is_unknown_only_if_it_is_a_write_that_has_left() {
    let kit = Kit::new().await;
    let client = kit.client();
    for (request, is_unknown) in [(write(), true), (founding("gate"), false)] {
        let entered = kit.stage.entered.wait().map(|()| Reason::LeaderChanged);
        let call = Call { request, timeout: LONG };
        let error = client.call_until(call, entered).await.unwrap_err();
        assert_eq!(*error.reason(), Reason::LeaderChanged);
        assert_eq!(error.may_have_applied(), is_unknown);
        kit.stage.dropped.wait().await;
    }
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client_of(&silent.local_addr().unwrap().to_string());
    let call = Call { request: write(), timeout: LONG };
    let given_up = tokio::time::sleep(SHORT).map(|()| Reason::LeaderChanged);
    let error = client.call_until(call, given_up).await.unwrap_err();
    assert_eq!((error.reason(), error.may_have_applied()), (&Reason::LeaderChanged, false));
}
