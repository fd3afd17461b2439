//! End-to-end tests of this room.
