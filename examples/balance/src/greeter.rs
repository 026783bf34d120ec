//! A service of one method, by hand: what `tonic-prost-build` makes of a `.proto` file elsewhere.

use futures::future::BoxFuture;
use prost::Message;
use std::convert::Infallible;
use std::task::{Context, Poll};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// `message Question {}`
#[derive(Clone, PartialEq, Message)]
struct Question {}

/// `message Answer { string name = 1; }`
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(string, tag = "1")]
    name: String,
}

const PATH: &str = "/greeter.Greeter/Who";

/// The server: says its name.
#[derive(Clone)]
pub(crate) struct Greeter {
    name: &'static str,
}

impl Greeter {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name }
    }

    /// Serves until it is told to end, and what is under way then to its end.
    pub(crate) async fn serve(self, port: TcpListener, told: oneshot::Receiver<()>) {
        let told = async { drop(told.await) };
        let incoming = TcpListenerStream::new(port);
        let served = Server::builder().serve_with_incoming_shutdown(self, incoming, told).await;
        served.expect("a bound port can be served");
    }
}

impl tower::Service<http::Request<Body>> for Greeter {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let name = self.name.to_owned();
        Box::pin(async move {
            let codec = ProstCodec::<Answer, Question>::default();
            let who = tower::service_fn(move |_: Request<Question>| {
                let answer = Answer { name: name.clone() };
                async move { Ok::<_, Status>(Response::new(answer)) }
            });
            Ok(tonic::server::Grpc::new(codec).unary(who, request).await)
        })
    }
}

/// The client.
pub(crate) struct Caller {
    grpc: tonic::client::Grpc<Channel>,
}

impl Caller {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { grpc: tonic::client::Grpc::new(channel) }
    }

    /// The name of whoever answers.
    pub(crate) async fn who(&mut self) -> super::Result<String> {
        self.grpc.ready().await?;
        let codec = ProstCodec::<Question, Answer>::default();
        let path = http::uri::PathAndQuery::from_static(PATH);
        let answer = self.grpc.unary(Request::new(Question {}), path, codec).await?;
        Ok(answer.into_inner().name)
    }
}
