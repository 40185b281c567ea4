//! Two parts of a load at the same time.

use std::sync::Barrier;

use super::*;

fn failed<T>(reason: &str) -> Result<T> {
    Err(Error::compute(reason))
}

#[test]
fn two_parts_of_a_load_are_done_at_the_same_time() {
    let both = Barrier::new(2);
    let part = |result| {
        both.wait();
        Ok(result)
    };
    assert_eq!(beside(|| part(1), || part(2)), Ok((1, 2)));
}

#[test]
fn the_error_of_the_first_part_is_told_unless_the_load_was_stopped() {
    let first = || failed::<()>("first");
    assert_eq!(beside(first, || failed::<()>("second")), failed("first"));
    assert_eq!(beside(|| Ok(()), || failed::<()>("second")), failed("second"));
    assert_eq!(beside(first, || Err::<(), _>(Error::Stopped)), Err(Error::Stopped));
}
