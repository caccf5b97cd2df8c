use std::alloc::System;

use proptest::prelude::*;

use super::*;

/// What the arena's blocks come from, and the block.
fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 4).unwrap()
}

#[test]
#[expect(unsafe_code, reason = "an allocator is called through raw pointers")]
fn memory_used_again_is_zero_where_zeros_are_asked_for() {
    let arena = Arena::around(System);
    let (small, large) = (layout(100_000), layout(300_000));
    // SAFETY: every block is written within its size and freed once, as it was asked for.
    unsafe {
        let block = arena.alloc(small);
        block.write_bytes(7, 100_000);
        arena.dealloc(block, small);
        // Partly used before, partly fresh.
        let zeros = arena.alloc_zeroed(large);
        assert_eq!(zeros, block);
        assert!(
            std::slice::from_raw_parts(zeros, 300_000)
                .iter()
                .all(|byte| *byte == 0)
        );
        assert_eq!(arena.held(), rounded(300_000).unwrap());
        arena.dealloc(zeros, large);
    }
    assert_eq!(
        (arena.held(), arena.occupied()),
        (0, rounded(300_000).unwrap())
    );
}

#[test]
#[expect(unsafe_code, reason = "an allocator is called through raw pointers")]
fn small_and_widely_aligned_blocks_are_the_other_allocators() {
    let arena = Arena::around(System);
    let wide = Layout::from_size_align(1 << 20, 4096).unwrap();
    // SAFETY: every block is freed once, as it was asked for.
    unsafe {
        for layout in [layout(100), layout(LARGE - 1), wide] {
            let block = arena.alloc(layout);
            assert!(!block.is_null() && block.addr().is_multiple_of(layout.align()));
            arena.dealloc(block, layout);
        }
    }
    assert_eq!(arena.occupied(), 0);
}

#[test]
#[expect(unsafe_code, reason = "an allocator is called through raw pointers")]
fn blocks_move_between_the_two_with_what_they_hold() {
    let arena = Arena::around(System);
    let sizes = [
        10,
        1_000,
        LARGE,
        3 * LARGE,
        2 * LARGE + 5,
        2 * LARGE,
        500_001,
        LARGE - 1,
        20,
    ];
    // SAFETY: every block is written and read within its size, and only the last one of each is used.
    unsafe {
        let mut block = arena.alloc(layout(sizes[0]));
        block.copy_from(b"0123456789".as_ptr(), 10);
        for pair in sizes.windows(2) {
            block = arena.realloc(block, layout(pair[0]), pair[1]);
            assert_eq!(
                std::slice::from_raw_parts(block, 10),
                b"0123456789",
                "{pair:?}"
            );
            block.add(pair[1] - 1).write(1);
            assert_eq!(arena.held() > 0, pair[1] >= LARGE);
        }
        arena.dealloc(block, layout(20));
    }
    assert_eq!(arena.held(), 0);
}

#[test]
#[expect(unsafe_code, reason = "an allocator is called through raw pointers")]
fn threads_share_it_and_a_second_round_needs_no_more() {
    let arena = Arena::around(System);
    let round = |threads: usize| {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let arena = &arena;
                scope.spawn(move || {
                    for turn in 0..200 {
                        let layout = layout(LARGE + 1_000 * ((thread * 31 + turn * 17) % 50));
                        // SAFETY: the block is written within its size and freed once.
                        unsafe {
                            let block = arena.alloc(layout);
                            block.write_bytes(thread as u8, layout.size());
                            std::thread::yield_now();
                            let bytes = std::slice::from_raw_parts(block, layout.size());
                            assert!(bytes.iter().all(|byte| *byte == thread as u8));
                            arena.dealloc(block, layout);
                        }
                    }
                });
            }
        });
    };
    round(4);
    assert_eq!(arena.held(), 0);
    round(1);
    let occupied = arena.occupied();
    round(1);
    assert_eq!(arena.occupied(), occupied);
}

#[test]
#[expect(unsafe_code, reason = "an allocator is called through raw pointers")]
fn what_lasts_does_not_split_the_gaps_of_what_passes() {
    let arena = Arena::around(System);
    let block = || layout(LARGE);
    // SAFETY: every block is freed once, as it was asked for.
    unsafe {
        let (first, kept, second) = (
            arena.alloc(block()),
            lasting(|| arena.alloc(block())),
            arena.alloc(block()),
        );
        arena.dealloc(first, block());
        arena.dealloc(second, block());
        assert_eq!(arena.held(), LARGE);
        let both = arena.alloc(layout(2 * LARGE));
        assert_eq!((both, arena.occupied()), (first, 3 * LARGE));
        // What is freed goes back to where it came from, whoever frees it.
        arena.dealloc(kept, block());
        assert_eq!(lasting(|| arena.alloc(block())), kept);
        arena.dealloc(kept, block());
        arena.dealloc(both, layout(2 * LARGE));
    }
    assert_eq!(arena.held(), 0);
}

#[test]
#[expect(unsafe_code, reason = "an allocator is called through raw pointers")]
fn more_than_the_machine_has_is_refused() {
    let arena = Arena::around(System);
    let too_large = layout(1 << 62);
    // SAFETY: the sizes are valid; a null pointer is not used.
    unsafe {
        assert!(arena.alloc(too_large).is_null());
        let block = arena.alloc(layout(LARGE));
        assert!(arena.realloc(block, layout(LARGE), 1 << 62).is_null());
        block.write_bytes(1, LARGE);
        arena.dealloc(block, layout(LARGE));
    }
    assert_eq!(arena.held(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    #[expect(unsafe_code, reason = "an allocator is called through raw pointers")]
    fn every_block_keeps_what_was_written(
        steps in prop::collection::vec((1usize..400_000, any::<prop::sample::Index>(), 0u8..3), 1..60)
    ) {
        let arena = Arena::around(System);
        let mut blocks: Vec<(*mut u8, usize, u8)> = Vec::new();
        for (number, (size, which, what)) in steps.into_iter().enumerate() {
            let mark = number as u8 + 1;
            // SAFETY: every block is used within its size until it is freed or moved.
            unsafe {
                match what {
                    1 if !blocks.is_empty() => {
                        let (block, size, _) = blocks.swap_remove(which.index(blocks.len()));
                        arena.dealloc(block, layout(size));
                    }
                    2 if !blocks.is_empty() => {
                        let index = which.index(blocks.len());
                        let entry = &mut blocks[index];
                        entry.0 = arena.realloc(entry.0, layout(entry.1), size);
                        let kept = std::slice::from_raw_parts(entry.0, entry.1.min(size));
                        prop_assert!(kept.iter().all(|byte| *byte == entry.2));
                        entry.0.write_bytes(entry.2, size);
                        entry.1 = size;
                    }
                    _ => {
                        let block = arena.alloc_zeroed(layout(size));
                        let zeros = std::slice::from_raw_parts(block, size);
                        prop_assert!(zeros.iter().all(|byte| *byte == 0));
                        block.write_bytes(mark, size);
                        blocks.push((block, size, mark));
                    }
                }
                for (block, size, mark) in &blocks {
                    let bytes = std::slice::from_raw_parts(*block, *size);
                    prop_assert!(bytes.iter().all(|byte| byte == mark));
                }
            }
        }
        for (block, size, _) in blocks {
            // SAFETY: as it was asked for.
            unsafe { arena.dealloc(block, layout(size)) };
        }
        prop_assert_eq!(arena.held(), 0);
    }
}
