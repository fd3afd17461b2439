//! How the prompt rows of a step are shared.

/// Shares `left` rows among prompts, given as (index, rows wanted) in order of admission: alike to every lane, so that a
/// burst on one adapter or from one caller does not hold up another, whatever a lane does not need going to the others;
/// the earliest lanes have what cannot be divided. See [`share_lane`] for what a lane does with its rows.
pub fn share<L: PartialEq>(
    left: usize,
    prompts: Vec<(usize, usize)>,
    lane: impl Fn(usize) -> L,
) -> Vec<(usize, usize)> {
    let mut lanes: Vec<(L, Vec<(usize, usize)>)> = Vec::new();
    for prompt in prompts {
        let of = lane(prompt.0);
        match lanes.iter_mut().find(|(other, _)| *other == of) {
            Some((_, prompts)) => prompts.push(prompt),
            None => lanes.push((of, vec![prompt])),
        }
    }
    let wanted: Vec<usize> = lanes.iter().map(|(_, prompts)| prompts.iter().map(|&(_, rows)| rows).sum()).collect();
    let dealt = deal(left, &wanted);
    lanes.into_iter().zip(dealt).flat_map(|((_, prompts), rows)| share_lane(rows, prompts)).collect()
}

/// Deals `left` to those who want `wanted`, each the same as far as it wants that much.
fn deal(mut left: usize, wanted: &[usize]) -> Vec<usize> {
    let mut dealt = vec![0; wanted.len()];
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&who| wanted[who]);
    // Whoever wants least is served first: what it leaves is there for the others.
    for (served, &who) in order.iter().enumerate() {
        dealt[who] = wanted[who].min(left.div_ceil(order.len() - served));
        left -= dealt[who];
    }
    dealt
}

/// Shares `left` rows among the prompts of one lane, given as (index, rows wanted) in order of admission. The first gets at
/// least half, so that it goes on whatever comes; the rest goes to the shortest, so that a short prompt does not stand
/// behind a long one.
fn share_lane(left: usize, mut prompts: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let Some(((_, first), others)) = prompts.split_first_mut() else { return prompts };
    let wanted: usize = others.iter().map(|&(_, rows)| rows).sum();
    *first = (*first).min(left - wanted.min(left / 2));
    let mut left = left - *first;
    others.sort_by_key(|&(_, rows)| rows);
    for (_, rows) in others {
        *rows = (*rows).min(left);
        left -= *rows;
    }
    prompts.retain(|&(_, rows)| rows > 0);
    prompts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_what_is_left_nor_what_is_wanted() {
        assert_eq!(share_lane(0, vec![(0, 5)]), []);
        assert_eq!(share_lane(1, vec![(0, 5), (1, 5)]), [(0, 1)]);
        assert_eq!(share_lane(9, vec![(0, 5), (1, 3)]), [(0, 5), (1, 3)]);
        assert_eq!(share_lane(10, vec![(0, 100), (1, 50), (2, 2)]), [(0, 5), (2, 2), (1, 3)]);
    }

    #[test]
    fn every_lane_gets_the_same_rows_as_far_as_it_wants_them() {
        assert_eq!(deal(10, &[]), Vec::<usize>::new());
        assert_eq!(deal(12, &[100, 100, 100]), [4, 4, 4]);
        assert_eq!(deal(12, &[100, 2, 100]), [5, 2, 5]);
        assert_eq!(deal(12, &[3, 4, 2]), [3, 4, 2]);
        assert_eq!(deal(5, &[9, 9, 9]), [2, 2, 1]);
        assert_eq!(deal(2, &[9, 9, 9]), [1, 1, 0]);
        // Two prompts of the first lane, one of the second.
        let shared = share(8, vec![(0, 50), (1, 50), (2, 50)], |index| index / 2);
        assert_eq!(shared, [(0, 2), (1, 2), (2, 4)]);
    }
}
