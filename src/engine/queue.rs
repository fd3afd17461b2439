//! Sequences without a place: one lane for each (tenant, adapter), served in turn, so that a burst on one does not
//! starve another.

use std::collections::VecDeque;

use super::sequence::{self, Sequence};

/// Who waits at one priority.
#[derive(Default)]
pub struct Queue {
    /// Those that had a place and lost it, by ticket: they come before anybody new.
    preempted: VecDeque<Sequence>,
    /// In order of turn; none is empty.
    lanes: VecDeque<Lane>,
}

struct Lane {
    key: sequence::Lane,
    sequences: VecDeque<Sequence>,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.preempted.is_empty() && self.lanes.is_empty()
    }

    pub fn preempted(&self) -> usize {
        self.preempted.len()
    }

    pub fn push(&mut self, sequence: Sequence) {
        let key = sequence.lane();
        match self.lanes.iter_mut().find(|lane| lane.key == key) {
            Some(lane) => lane.sequences.push_back(sequence),
            None => self.lanes.push_back(Lane { key, sequences: [sequence].into() }),
        }
    }

    pub fn push_preempted(&mut self, sequence: Sequence) {
        let place = self.preempted.partition_point(|other| other.ticket < sequence.ticket);
        self.preempted.insert(place, sequence);
    }

    pub fn first_preempted(&self) -> Option<&Sequence> {
        self.preempted.front()
    }

    pub fn pop_preempted(&mut self) -> Option<Sequence> {
        self.preempted.pop_front()
    }

    /// The head of the lane whose turn is `turn` places away.
    pub fn head(&self, turn: usize) -> Option<&Sequence> {
        self.lanes.get(turn)?.sequences.front()
    }

    /// Takes the head of that lane. Its next turn comes after everybody's; the heads before it have been passed over.
    pub fn pop(&mut self, turn: usize) -> Option<Sequence> {
        let mut lane = self.lanes.remove(turn)?;
        let sequence = lane.sequences.pop_front();
        if !lane.sequences.is_empty() {
            self.lanes.push_back(lane);
        }
        for passed in self.lanes.iter_mut().take(turn) {
            passed.sequences.iter_mut().take(1).for_each(|head| head.passed_over += 1);
        }
        sequence
    }

    /// Drops whoever is no longer wanted; they hold no blocks.
    pub fn drop_abandoned(&mut self) {
        let keep = |sequence: &mut Sequence| {
            let abandoned = sequence.is_abandoned();
            if abandoned {
                sequence.abandon();
            }
            !abandoned
        };
        self.preempted.retain_mut(keep);
        self.lanes.retain_mut(|lane| {
            lane.sequences.retain_mut(keep);
            !lane.sequences.is_empty()
        });
    }

    pub fn clear(&mut self) {
        self.preempted.clear();
        self.lanes.clear();
    }
}
