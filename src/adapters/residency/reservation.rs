//! Room for a load that is under way.

use super::{LoadTimes, Resident, Shared};
use crate::{
    adapters::AdapterError,
    terms::{AdapterName, AdapterVersion},
};

/// Bytes and a place kept for one load. Given back on drop, unless the adapter came to be.
pub struct Reservation<'a> {
    shared: &'a Shared,
    name: &'a AdapterName,
    bytes: u64,
    settled: bool,
    /// How long the stages of the load took, as whoever loads tells.
    pub times: LoadTimes,
}

impl<'a> Reservation<'a> {
    pub(super) fn open(shared: &'a Shared, name: &'a AdapterName, bytes: u64) -> Result<Self, AdapterError> {
        shared.make_room(name, bytes, bytes, 1)?;
        Ok(Self { shared, name, bytes, settled: false, times: LoadTimes::default() })
    }

    /// Makes the reservation as large as what is needed turned out to be.
    ///
    /// # Errors
    /// [`AdapterError::NoRoom`] if there is none for more.
    pub fn resize(&mut self, bytes: u64) -> Result<(), AdapterError> {
        match bytes.checked_sub(self.bytes) {
            Some(0) => {}
            Some(more) => self.shared.make_room(self.name, bytes, more, 0)?,
            None => {
                let mut book = self.shared.book();
                book.bytes -= self.bytes - bytes;
                self.shared.show(&book);
            }
        }
        self.bytes = bytes;
        Ok(())
    }

    pub(super) fn settle(mut self, version: AdapterVersion, resident: Resident) {
        self.settled = true;
        let mut book = self.shared.book();
        book.reserved -= 1;
        book.live.insert(version, resident);
        self.shared.show(&book);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut book = self.shared.book();
        book.bytes -= self.bytes;
        book.count -= 1;
        book.reserved -= 1;
        self.shared.show(&book);
        drop(book);
        self.shared.freed.notify_all();
    }
}
