//! Behaviour through the public API. One binary, since each links everything.

mod crash;
mod group;
mod kit;
mod lifecycle;
mod recipes;
