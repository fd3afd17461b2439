//! Stop strings in a stream of text. Text that may be the beginning of a stop string waits until it is clear.

/// What may be shown after a push.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is safe to show now.
    pub text: String,
    /// A stop string was found: `text` is the last of the answer, and what came after is dropped.
    pub stopped: bool,
}

/// Watches one answer's text for the first end of any stop string.
///
/// The string whose last character comes first ends the answer; of several that end there, the longest.
pub struct StopStrings {
    stops: Vec<String>,
    include: bool,
    /// Not shown yet: a beginning of a stop string, perhaps.
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// `include` shows the stop string too. Empty strings stop nothing.
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, include, held: String::new(), stopped: false }
    }

    /// Takes more of the answer's text. After a stop nothing is shown any more.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome { text: String::new(), stopped: true };
        }
        let searched_from = self.held.len();
        self.held.push_str(text);
        if let Some((start, end)) = self.find(searched_from) {
            self.held.truncate(if self.include { end } else { start });
            self.stopped = true;
            return StopOutcome { text: std::mem::take(&mut self.held), stopped: true };
        }
        let rest = self.held.split_off(self.begins_at());
        StopOutcome { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back, when the answer ends without a stop.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start and end of the stop string that ends first after `from`.
    fn find(&self, from: usize) -> Option<(usize, usize)> {
        let ends = self.stops.iter().filter_map(|stop| {
            let mut start = from.saturating_sub(stop.len().saturating_sub(1));
            while !self.held.is_char_boundary(start) {
                start -= 1;
            }
            let at = start + self.held[start..].find(stop.as_str())?;
            Some((at, at + stop.len()))
        });
        ends.min_by_key(|&(start, end)| (end, start))
    }

    /// Where the longest tail begins that is a beginning of a stop string; the end where there is none.
    fn begins_at(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest.saturating_sub(1));
        (earliest..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len())
    }
}
