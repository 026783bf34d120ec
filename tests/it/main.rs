//! Behaviour through the public API. One binary, since each links everything.

mod bad_input;
mod crash;
mod kit;
