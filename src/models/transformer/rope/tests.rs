//! Rotary embeddings of every form against transformers' own frequencies, which `tests/references/rope.py` records.

use serde_json::{Value, json};

use super::*;

#[derive(Deserialize)]
struct Reference {
    head: usize,
    context: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    parameters: Value,
    frequencies: Vec<f32>,
    attention_factor: f32,
    long: Option<Vec<f32>>,
}

const FILE: &str = "config.json";

fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    // Relative, as the frequencies of a head lie orders of magnitude apart.
    let apart = |(one, other): (&f32, &f32)| (one - other).abs() / other.abs().max(1e-12);
    left.iter().zip(right).map(apart).fold(0.0, f32::max)
}

#[test]
fn every_form_has_the_frequencies_of_the_reference() {
    let reference: Reference =
        serde_json::from_str(include_str!("../../../../tests/references/rope.json")).unwrap();
    assert!(reference.cases.len() >= 19);
    for case in reference.cases {
        let settings: RopeSettings =
            parse(FILE.as_ref(), &json!({"rope_parameters": case.parameters})).unwrap();
        let shape = RopeShape { head_size: reference.head, context: reference.context, base: 1e4 };
        let rope = settings.parameters(FILE.as_ref(), None).unwrap().rope(FILE.as_ref(), shape).unwrap();
        let apart = largest_difference(&rope.frequencies.inverse_frequencies, &case.frequencies);
        assert!(apart < 2e-6, "{}: {apart}", case.parameters);
        let factor = (rope.frequencies.attention_factor - case.attention_factor).abs();
        assert!(factor < 1e-6, "{}: {factor}", case.parameters);
        let long = rope.long.map(|(_, long)| long.inverse_frequencies);
        match (long, case.long) {
            (Some(long), Some(wanted)) => assert!(largest_difference(&long, &wanted) < 2e-6),
            (long, wanted) => assert!(long.is_none() && wanted.is_none(), "{}", case.parameters),
        }
    }
}

#[test]
fn yarn_lengthens_the_context_and_no_other_form_does() {
    let reach = |parameters: Value| {
        let parameters: RopeParameters = parse(FILE.as_ref(), &parameters).unwrap();
        parameters.reach(32_768)
    };
    assert_eq!(
        reach(json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768})),
        131_072
    );
    assert_eq!(reach(json!({"rope_type": "yarn", "factor": 4.0})), 131_072);
    assert_eq!(
        reach(json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096})),
        32_768
    );
    assert_eq!(reach(json!({"rope_type": "yarn", "factor": 1e300})), MAX_SIDE);
    assert_eq!(reach(json!({"rope_type": "linear", "factor": 4.0})), 32_768);
    assert_eq!(reach(json!({})), 32_768);
}

#[test]
fn the_older_name_counts_where_a_file_has_both() {
    let settings =
        json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "yarn"}});
    let settings: RopeSettings = parse(FILE.as_ref(), &settings).unwrap();
    assert_eq!(settings.parameters(FILE.as_ref(), None).unwrap().kind(), "linear");
    let wrong: RopeSettings =
        parse(FILE.as_ref(), &json!({"rope_scaling": {"type": "linear"}, "rope_parameters": 7})).unwrap();
    assert!(wrong.parameters(FILE.as_ref(), None).is_err());
}
