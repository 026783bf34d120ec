//! What stands between libFuzzer and the library: one run of a target, with its heap counted.

/// Runs the target of this name once, and panics if it breaks a promise, or takes more heap than it declares.
pub fn run(name: &str, input: &[u8]) {
    let target = quorate::fuzz::target(name).expect("each binary is named after a target");
    target.check(input, |run| allocation_counter::measure(run).bytes_max);
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_heap_of_a_run_is_counted() {
        let taken = allocation_counter::measure(|| {
            std::hint::black_box(Vec::<u8>::with_capacity(1 << 20));
        });
        assert_eq!(taken.bytes_max, 1 << 20);
        // A list that says it is the longest, and has nothing.
        let record = [2, 0, 0, 253, 255, 255, 255, 255, 255, 255, 255, 127];
        let target = quorate::fuzz::target("founding").expect("it is a target");
        let mut counted = 0;
        target.check(&record, |run| {
            counted = allocation_counter::measure(run).bytes_max;
            counted
        });
        assert!((1 << 19..target.heap_max(record.len())).contains(&counted), "{counted}");
    }
}
