//! Keys and values of the first tokens of a sequence, copied into the cache of another one that begins alike: they are what
//! it would have computed itself, to the last bit.

use super::tests::{Fixture, by_kind};
use crate::kernels::causal::ROW_BLOCK;
use crate::kernels::packed::Arithmetic;
use crate::models::transformer::Cache;

/// Fixtures that cannot divide what they keep of a sequence.
const WHOLE: [&str; 3] = ["qwen3_5", "qwen3_5_moe", "qwen3_next"];

fn tokens(fixture: &Fixture, seed: u32) -> Vec<u32> {
    let count = (2 * ROW_BLOCK + 37).min(fixture.decoder.context()) as u32;
    (0..count).map(|index| (index * 7919 + seed * 31 + index * index) % 300).collect()
}

/// Reads what is left of a sequence in pieces, beside another one in the same passes, or alone. The logits after it.
fn read(fixture: &Fixture, cache: &mut Cache, tokens: &[u32], pieces: &[usize], beside: bool) -> Vec<u32> {
    let other = self::tokens(fixture, 5);
    let mut others = fixture.decoder.cache(other.len()).unwrap();
    let (mut sizes, mut logits) = (pieces.iter().cycle(), Vec::new());
    while cache.length() < tokens.len() {
        let begin = cache.length();
        let piece = &tokens[begin..tokens.len().min(begin + sizes.next().unwrap())];
        let next = &other[others.length()..other.len().min(others.length() + 3)];
        logits = match beside && !next.is_empty() {
            true => fixture.step([&mut others, &mut *cache], &[next, piece]).remove(1),
            false => fixture.step([&mut *cache], &[piece]).remove(0),
        };
    }
    logits.into_iter().map(f32::to_bits).collect()
}

fn bits(numbers: Vec<f32>) -> Vec<u32> {
    numbers.into_iter().map(f32::to_bits).collect()
}

#[test]
fn copied_keys_and_values_are_those_that_are_computed_to_the_last_bit() {
    let (plain, quantised) = by_kind();
    let all = plain.into_iter().map(|name| (name, Arithmetic::Exact));
    let rounded = quantised.iter().map(|name| (name.clone(), Arithmetic::EightBit));
    let exact = quantised.iter().map(|name| (name.clone(), Arithmetic::Exact));
    let (mut whole, mut compared) = (Vec::new(), 0);
    for (name, arithmetic) in all.chain(rounded).chain(exact) {
        let fixture = Fixture::by(&name, arithmetic);
        let decoder = &fixture.decoder;
        let tokens = tokens(&fixture, 1);
        if tokens.len() <= ROW_BLOCK {
            continue;
        }
        let mut alone = decoder.cache(tokens.len()).unwrap();
        let expected = read(&fixture, &mut alone, &tokens, &[2 * ROW_BLOCK], false);
        let blocks = tokens.len() / ROW_BLOCK;
        let block = |index: usize| decoder.copy(&alone, index * ROW_BLOCK..(index + 1) * ROW_BLOCK);
        let Some(copies) = (0..blocks).map(block).collect::<Option<Vec<_>>>() else {
            assert_eq!(decoder.numbers_per_token(), None, "{name}");
            whole.push(name);
            continue;
        };
        assert_eq!(decoder.numbers_per_token().map(|numbers| numbers * ROW_BLOCK), Some(copies[0].len()));
        // In other pieces, in company: the same keys, values and logits.
        let mut other = decoder.cache(tokens.len()).unwrap();
        let logits = read(&fixture, &mut other, &tokens, &[ROW_BLOCK, 3 * ROW_BLOCK, ROW_BLOCK], true);
        assert!(logits == expected, "{name}: in other pieces");
        let all = blocks * ROW_BLOCK;
        assert_eq!(bits(decoder.copy(&other, 0..all).unwrap()), bits(decoder.copy(&alone, 0..all).unwrap()));
        // From each block on.
        for found in 1..=(tokens.len() - 1) / ROW_BLOCK {
            let mut cache = decoder.cache(tokens.len()).unwrap();
            let parts: Vec<&[f32]> = copies[..found].iter().map(Vec::as_slice).collect();
            decoder.fill(&mut cache, &parts, ROW_BLOCK).unwrap();
            assert_eq!(cache.length(), found * ROW_BLOCK);
            let logits = read(&fixture, &mut cache, &tokens, &[2 * ROW_BLOCK], found % 2 == 0);
            assert!(logits == expected, "{name}: after {found} blocks");
            compared += 1;
        }
        let (mut full, parts) = (alone, [copies[0].as_slice()]);
        assert!(decoder.fill(&mut full, &parts, ROW_BLOCK).is_err(), "the cache is not empty");
    }
    assert_eq!(whole, WHOLE, "these read all of every prompt");
    assert!(compared > 40, "{compared} compared");
}

/// Phi-3's long frequencies: keys of a sequence that outgrows the short ones are others.
#[test]
fn a_sequence_of_another_length_may_have_other_keys() {
    let fixture = Fixture::by("phi3", Arithmetic::Exact);
    let lengthened = |tokens| fixture.decoder.lengthened(tokens);
    let limit = (1..fixture.decoder.context()).find(|tokens| lengthened(*tokens) > 0).unwrap();
    assert_eq!((lengthened(limit - 1), lengthened(limit)), (0, 1));
}
