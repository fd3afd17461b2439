//! Equal beginnings are computed once.

use super::*;

#[test]
fn an_equal_beginning_is_computed_once() {
    let mut bench = Bench::sharing(20);
    let mut first = bench.push(7, 9, 2);
    assert_eq!(bench.finish(9), [[(7, 9)], [(7, 1)]]);
    assert_eq!(first.cached(), Some(0));
    let mut again = bench.push(7, 9, 2);
    assert_eq!(bench.finish(9), [[(7, 1)], [(7, 1)]], "two full blocks of four are kept; the last row has the answer");
    assert_eq!(again.cached(), Some(8));
    let mut longer = bench.push(7, 15, 1);
    assert_eq!(bench.finish(9), [[(7, 7)]]);
    assert_eq!(longer.cached(), Some(8));
    let mut exact = bench.push(7, 8, 1);
    assert_eq!(bench.finish(9), [[(7, 4)]], "the block with the last position is computed again, for its answer");
    assert_eq!(exact.cached(), Some(4));
}

#[test]
fn an_answer_is_a_beginning_too() {
    let mut bench = Bench::sharing(20);
    let _first = bench.push(1, 4, 9);
    bench.finish(20);
    // The answers are all 1: the prompt of 13 tokens is the first conversation, its 12 computed positions are kept.
    let mut next = bench.push(1, 13, 1);
    assert_eq!(bench.finish(9), [[(1, 1)]]);
    assert_eq!(next.cached(), Some(12));
}

#[test]
fn those_who_begin_alike_at_once_wait_for_the_first_of_them() {
    let mut bench = Bench::sharing(40);
    let mut asked: Vec<Asked> = (0..3).map(|_| bench.push(7, 30, 2)).collect();
    let _other = bench.push(8, 3, 1);
    assert_eq!(bench.step(), Some(vec![(7, 21), (8, 3)]), "others are not held up");
    assert_eq!(bench.step(), Some(vec![(7, 9)]), "20 rows are shared by now, and the next blocks are under way");
    assert_eq!(bench.step(), Some(vec![(7, 1), (7, 2), (7, 2)]));
    bench.finish(9);
    assert_eq!(asked.iter_mut().map(|asked| asked.cached().unwrap()).collect::<Vec<_>>(), [0, 28, 28]);
}

#[test]
fn who_leaves_in_the_middle_does_not_strand_those_who_waited_for_it() {
    let mut bench = Bench::sharing(40);
    let (first, second) = (bench.push(7, 40, 2), bench.push(7, 40, 2));
    assert_eq!(bench.step(), Some(vec![(7, 24)]));
    first.cancel.cancel();
    assert_eq!(bench.step(), Some(vec![(7, 16)]), "the other goes on where it stopped");
    bench.finish(9);
    assert!(second.got_all());
}

#[test]
fn versions_and_salts_share_nothing() {
    let mut bench = Bench::sharing(40);
    let change: [fn(&mut Job); 4] = [
        |_| {},
        |job| job.adapter = Some(adapter(1)),
        |job| job.adapter = Some(adapter(2)),
        |job| job.salt = KvSalt([1; 32]),
    ];
    for change in change {
        for cached in [0, 8] {
            let mut asked = bench.push_as(7, 9, generate(1), change);
            bench.finish(9);
            assert_eq!(asked.cached(), Some(cached));
        }
    }
}

#[test]
fn scored_and_embedded_texts_are_computed_whole_and_shared() {
    let mut bench = Bench::sharing(40);
    for work in [Work::Score { top: 0 }, Work::Embed, generate(1)] {
        let whole = matches!(work, Work::Score { .. } | Work::Embed);
        let mut asked = bench.push_as(7, 9, work, |_| {});
        let rows = bench.finish(9).concat().iter().map(|&(_, rows)| rows).sum::<usize>();
        assert_eq!(rows >= 8, whole, "{rows} rows");
        assert_eq!(asked.cached(), Some(if whole { 0 } else { 8 }));
    }
}

#[test]
fn a_failed_step_leaves_nothing_to_share() {
    let mut bench = Bench::sharing(20);
    bench.push(7, 9, 1);
    bench.finish(9);
    bench.push(8, 2, 1);
    assert!(bench.plan());
    bench.scheduler.fail(&bench.step, &EngineFault::Step(String::new()));
    let mut again = bench.push(7, 9, 1);
    bench.finish(9);
    assert_eq!(again.cached(), Some(0));
}
