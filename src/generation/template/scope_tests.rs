//! Blocks as Jinja has them: what they set is gone at their end, and no jump leaves them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::tests::compile;

/// As Jinja: what a block sets is gone at its end, and line ends of the template are those of Unix.
#[test]
fn blocks_are_scopes_and_line_ends_are_normalised() {
    for (source, expected) in [
        ("{% set x=0 %}{% generation %}{% set x=1 %}{{x}}{% endgeneration %}[{{x}}]", "1[0]"),
        ("{% set t %}{% set y=1 %}a{% endset %}{{t}}[{{y}}]", "a[]"),
        ("{% filter upper %}{% set y=1 %}a{% endfilter %}[{{y}}]", "A[]"),
        ("{% for x in [] %}{% else %}{% set y=1 %}b{% endfor %}[{{y}}]", "b[]"),
        ("a\r\nb\r{% if true %}\r\nx\r\n{% endif %}\r\n{{ 'q\r\nz' }}\r\nend", "a\nb\nx\nq\nz\nend"),
        ("{{ '\\x7f'|tojson(ensure_ascii=true) }}", "\"\\u007f\""),
    ] {
        assert_eq!(
            compile(source).unwrap().render(super::Conversation::of(&[])).unwrap(),
            expected,
            "{source}"
        );
    }
}

#[test]
fn a_jump_out_of_a_block_is_refused() {
    let jumps = |block: &str| format!("{{% for i in [1,2] %}}{block}{{{{i}}}}{{% endfor %}}");
    for block in [
        "{% set t %}{% if i==2 %}{% continue %}{% endif %}{% endset %}",
        "{% filter upper %}{% break %}{% endfilter %}",
        "{% with %}{% break %}{% endwith %}",
        "{% generation %}{% break %}{% endgeneration %}",
    ] {
        let error = compile(&jumps(block)).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("break or continue"), "{block}: {error}");
    }
    let inner = "{% with %}{% for j in [1,2] %}{% break %}{% endfor %}{% endwith %}{% if i==2 %}{% continue %}{% endif %}";
    assert_eq!(compile(&jumps(inner)).unwrap().render(super::Conversation::of(&[])).unwrap(), "1");
}
