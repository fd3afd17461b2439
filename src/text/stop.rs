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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], include: bool, pushes: &[&str]) -> (Vec<String>, bool, String) {
        let mut watch = StopStrings::new(stops.iter().map(|&stop| stop.to_owned()).collect(), include);
        let outcomes: Vec<StopOutcome> = pushes.iter().map(|push| watch.push(push)).collect();
        let stopped = outcomes.last().is_some_and(|outcome| outcome.stopped);
        (outcomes.into_iter().map(|outcome| outcome.text).collect(), stopped, watch.finish())
    }

    #[test]
    fn a_possible_beginning_waits_until_it_is_clear() {
        let (shown, stopped, rest) = run(&["###"], false, &["a#", "#", "b", "##"]);
        assert_eq!((shown, stopped, rest.as_str()), (["a", "", "##b", ""].map(String::from).to_vec(), false, "##"));
        let (shown, stopped, rest) = run(&["###"], false, &["a#", "#", "#b", "c"]);
        assert_eq!((shown, stopped, rest.as_str()), (["a", "", "", ""].map(String::from).to_vec(), true, ""));
    }

    #[test]
    fn the_stop_string_is_shown_only_on_request() {
        assert_eq!(run(&["end"], true, &["the e", "nding"]).0, ["the ", "end"]);
        assert_eq!(run(&["end"], false, &["the e", "nding"]).0, ["the ", ""]);
    }

    #[test]
    fn the_string_that_ends_first_decides_and_of_those_the_longest() {
        assert_eq!(run(&["bcd", "c"], false, &["abcd"]).0, ["ab"]);
        assert_eq!(run(&["b", "ab"], true, &["xab"]).0, ["xab"]);
        assert_eq!(run(&["b", "ab"], false, &["xab"]).0, ["x"]);
        assert_eq!(run(&["", "é"], false, &["caf", "é"]).0, ["caf", ""]);
    }

    /// Start and end of the stop that ends first, by looking at every end.
    fn naive(stops: &[String], text: &str) -> Option<(usize, usize)> {
        (0..=text.len()).filter(|&end| text.is_char_boundary(end)).find_map(|end| {
            let longest = stops
                .iter()
                .filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_str()))
                .max_by_key(|stop| stop.len())?;
            Some((end - longest.len(), end))
        })
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_stop_where_the_whole_text_stops(
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,5}", 0..10),
            include in any::<bool>(),
        ) {
            let whole = pieces.concat();
            let mut watch = StopStrings::new(stops.clone(), include);
            let mut shown = String::new();
            let mut stopped = false;
            for piece in &pieces {
                let outcome = watch.push(piece);
                shown += &outcome.text;
                stopped = outcome.stopped;
                prop_assert!(whole.starts_with(&shown));
            }
            shown += &watch.finish();
            match naive(&stops, &whole) {
                None => prop_assert_eq!((shown, stopped), (whole, false)),
                Some((start, end)) => {
                    prop_assert!(stopped);
                    prop_assert_eq!(&shown, &whole[..if include { end } else { start }]);
                }
            }
        }
    }
}
