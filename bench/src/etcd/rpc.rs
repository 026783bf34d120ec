//! etcd's API, as far as the work needs it: the messages and the calls, written by hand.
//!
//! The crates that offer etcd's API generate it from its `.proto` files when they are built, and for that they want
//! `protoc` installed. Whoever repeats the benchmark should need cargo and an etcd and nothing else, and two dozen short
//! messages are little to write. A message holds only the fields that are set or read here: protobuf leaves out a field
//! that has its default, and skips one that it does not know. The numbers are those of etcd 3.5.
//!
//! ```text
//! PutRequest ──▶ call ──▶ tonic (encode, HTTP/2) ──▶ etcd ──▶ tonic (decode) ──▶ Ignored
//! ```
//!
//! It must not be slower than what a user of etcd has, so
//! - keys and values are [`Bytes`]: an answer is not copied out of the buffer that it came in;
//! - an answer that nobody looks into is decoded as [`Ignored`].
//!
//! Who shares a stream, and who waits for which answer on it, is left to `shared`.

use bytes::Bytes;
use futures::Stream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// gRPC's own limit, 4 MiB, is nearly reached by an answer of ten thousand keys.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A request, and where it goes.
pub(crate) trait Call: prost::Message + std::fmt::Debug + 'static {
    type Answer: prost::Message + Default + 'static;
    const PATH: &'static str;
}

macro_rules! calls {
    ($($request:ty => $answer:ty, $path:literal;)*) => {
        $(impl Call for $request {
            type Answer = $answer;
            const PATH: &'static str = $path;
        })*
    };
}

calls! {
    RangeRequest => RangeResponse, "/etcdserverpb.KV/Range";
    PutRequest => Ignored, "/etcdserverpb.KV/Put";
    TxnRequest => TxnResponse, "/etcdserverpb.KV/Txn";
    WatchRequest => WatchResponse, "/etcdserverpb.Watch/Watch";
    LeaseGrantRequest => LeaseGrantResponse, "/etcdserverpb.Lease/LeaseGrant";
    LeaseRevokeRequest => Ignored, "/etcdserverpb.Lease/LeaseRevoke";
    LeaseKeepAliveRequest => LeaseKeepAliveResponse, "/etcdserverpb.Lease/LeaseKeepAlive";
    StatusRequest => StatusResponse, "/etcdserverpb.Maintenance/Status";
    LockRequest => LockResponse, "/v3lockpb.Lock/Lock";
    UnlockRequest => Ignored, "/v3lockpb.Lock/Unlock";
    CampaignRequest => CampaignResponse, "/v3electionpb.Election/Campaign";
    ResignRequest => Ignored, "/v3electionpb.Election/Resign";
}

/// One request, one answer.
pub(crate) async fn call<Q: Call>(channel: &Channel, request: Q) -> Result<Q::Answer, Status> {
    let mut client = client(channel).await?;
    let path = PathAndQuery::from_static(Q::PATH);
    let answer = client.unary(Request::new(request), path, ProstCodec::default()).await?;
    Ok(answer.into_inner())
}

/// Many requests and many answers. Returns only when etcd has answered the first request.
pub(crate) async fn stream<Q: Call>(
    channel: &Channel,
    requests: impl Stream<Item = Q> + Send + 'static,
) -> Result<Streaming<Q::Answer>, Status> {
    let mut client = client(channel).await?;
    let path = PathAndQuery::from_static(Q::PATH);
    let answers = client.streaming(Request::new(requests), path, ProstCodec::default()).await?;
    Ok(answers.into_inner())
}

async fn client(channel: &Channel) -> Result<Grpc<Channel>, Status> {
    let mut client = Grpc::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(client)
}

/// The key behind the last one that begins with `prefix`, which is how etcd names all keys under it.
pub(crate) fn end_of(prefix: &[u8]) -> Bytes {
    let Some(last) = prefix.iter().rposition(|byte| *byte != u8::MAX) else {
        return Bytes::from_static(&[0]);
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end.into()
}

/// An answer that says no more than that it came.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ignored {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    pub(crate) member_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    /// Empty for `key` alone.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) range_end: Bytes,
    #[prost(bool, tag = "7")]
    pub(crate) serializable: bool,
    #[prost(bool, tag = "9")]
    pub(crate) count_only: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    pub(crate) kvs: Vec<KeyValue>,
    #[prost(int64, tag = "4")]
    pub(crate) count: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
    /// 0 for none.
    #[prost(int64, tag = "3")]
    pub(crate) lease: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TxnResponse {
    #[prost(bool, tag = "2")]
    pub(crate) succeeded: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Compare {
    #[prost(int32, tag = "1")]
    pub(crate) result: i32,
    #[prost(int32, tag = "2")]
    pub(crate) target: i32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) key: Bytes,
    // In etcd this is one of a union, of which a member is sent even if it is 0.
    #[prost(int64, optional, tag = "5")]
    pub(crate) create_revision: Option<i64>,
}

impl Compare {
    const GREATER: i32 = 1;
    const CREATE: i32 = 1;

    /// Holds if the key exists: only then was it created at a revision, and revisions begin with 1.
    pub(crate) fn exists(key: Bytes) -> Self {
        Self { result: Self::GREATER, target: Self::CREATE, key, create_revision: Some(0) }
    }
}

/// One of several things to do in a transaction. We only put.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RequestOp {
    #[prost(message, optional, tag = "2")]
    pub(crate) put: Option<PutRequest>,
}

/// Either to begin a watch or to end it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) create: Option<WatchCreateRequest>,
    #[prost(message, optional, tag = "2")]
    pub(crate) cancel: Option<WatchCancelRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WatchCreateRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) range_end: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WatchCancelRequest {
    #[prost(int64, tag = "1")]
    pub(crate) watch_id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WatchResponse {
    #[prost(int64, tag = "2")]
    pub(crate) watch_id: i64,
    #[prost(bool, tag = "3")]
    pub(crate) created: bool,
    #[prost(bool, tag = "4")]
    pub(crate) canceled: bool,
    #[prost(string, tag = "6")]
    pub(crate) cancel_reason: String,
    #[prost(message, repeated, tag = "11")]
    pub(crate) events: Vec<Event>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Event {
    #[prost(int32, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) kv: Option<KeyValue>,
}

impl Event {
    pub(crate) const DELETE: i32 = 1;
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LeaseGrantRequest {
    #[prost(int64, tag = "1")]
    pub(crate) ttl_seconds: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LeaseGrantResponse {
    #[prost(int64, tag = "2")]
    pub(crate) id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LeaseRevokeRequest {
    #[prost(int64, tag = "1")]
    pub(crate) id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LeaseKeepAliveRequest {
    #[prost(int64, tag = "1")]
    pub(crate) id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LeaseKeepAliveResponse {
    #[prost(int64, tag = "2")]
    pub(crate) id: i64,
    /// 0 if there is no such lease.
    #[prost(int64, tag = "3")]
    pub(crate) ttl_seconds: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<ResponseHeader>,
    /// 0 for none.
    #[prost(uint64, tag = "4")]
    pub(crate) leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LockRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) name: Bytes,
    #[prost(int64, tag = "2")]
    pub(crate) lease: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LockResponse {
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) key: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct UnlockRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CampaignRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) name: Bytes,
    #[prost(int64, tag = "2")]
    pub(crate) lease: i64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CampaignResponse {
    #[prost(message, optional, tag = "2")]
    pub(crate) leader: Option<LeaderKey>,
}

/// Proves a lead, when it is given up.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LeaderKey {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) name: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) key: Bytes,
    #[prost(int64, tag = "3")]
    pub(crate) revision: i64,
    #[prost(int64, tag = "4")]
    pub(crate) lease: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ResignRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) leader: Option<LeaderKey>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_that_begins_with_it() {
        assert_eq!(end_of(b"ab/"), Bytes::from_static(b"ab0"));
        assert_eq!(end_of(b"a\xff\xff"), Bytes::from_static(b"b"));
        // etcd's word for "no end".
        assert_eq!(end_of(b"\xff"), Bytes::from_static(b"\0"));
        assert_eq!(end_of(b""), Bytes::from_static(b"\0"));
    }
}
