//! A chat template takes no more memory than the limits say, on whatever way it grows. This is the only test of its
//! process, because it counts every byte of the process's heap.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use candle_actors::model_actors::{Message, Prompt};
use candle_actors::{Source, StandaloneModel, TextGenerationModel};
use common::root;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Three times what a template may handle.
const MOST: usize = 3 * (256 << 20);

/// Templates that double a text, and then make something larger of it.
fn growing() -> Vec<String> {
    let doubled = |times| format!("{{% set a = 'xxxxxxxx' %}}{}", "{% set a = a ~ a %}".repeat(times));
    let lists = "a|list, ".repeat(60);
    let in_loop = |body: &str| {
        let start = "{% set ns = namespace(a=messages[0].content, l=[]) %}{% for i in range(100000) %}";
        format!("{start}{body}{{% endfor %}}")
    };
    let repeated = "'x' * 100000000 ~ ".repeat(400);
    vec![
        "{% set a = 'x' * 20000 %}{{ a.join([''] * 20000)|length }}".to_owned(),
        // A number that is not written as minijinja writes it.
        "{{ ('1e+16' * 20000)|replace(1e16, 'x' * 20000)|length }}".to_owned(),
        doubled(21) + &format!("{{% if [{lists}] %}}ok{{% endif %}}"),
        doubled(60) + "{{ a|length }}",
        doubled(24) + "{{ a|list|length }}",
        doubled(20) + "{{ a.split('x')|length }}",
        doubled(20) + "{{ a|replace('x', a)|length }}",
        doubled(20) + "{{ a|list|join(a)|length }}",
        in_loop("{% set ns.a = ns.a ~ ns.a %}"),
        in_loop("{% set ns.l = ns.l + [ns.a[1:]] %}"),
        in_loop("{% set ns.l = ns.l + [ns.a.strip() ~ i] %}"),
        in_loop("{% set ns.l = ns.l + [range(100000)|list] %}"),
        in_loop("{% set ns.l = (ns.l + ns.l + [i]) * 2 %}"),
        format!("{{{{ {repeated} 'y' }}}}"),
        "{% set a = [0] * 90000000 %}{{ dict(*a) }}".to_owned(),
        format!(
            "{{% set a %}}{{% for i in range(99999) %}}{}{{% endfor %}}{{% endset %}}",
            "raw ".repeat(9999)
        ),
    ]
}

#[test]
fn no_template_takes_more_memory_than_the_limits_say() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(root().join("tests/fixtures/text_to_text/llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let render = |template: &str| {
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let model = TextGenerationModel::load(Source::directory(folder.path()))?;
        model.tokenize(&Prompt::Messages(vec![Message::user("word ".repeat(1 << 14))]))
    };
    // The control: a template that does not grow.
    render("{{ messages[0].content[:8] }}").unwrap();
    // Python's `join` takes no names: one by which it could be asked for more than was counted.
    let named = "{% set a = 'x' * 10000 %}{{ a.join(iterable=[''] * 10000)|length }}";
    let error = render(named).map(drop).unwrap_err().to_string();
    assert!(error.contains("missing argument"), "{error}");
    for template in growing() {
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let result = render(&template);
        let most = HEAP.peak_usage().saturating_sub(before);
        let shown: String = template.chars().take(60).chain(template.chars().rev().take(60)).collect();
        println!("{most} bytes: {shown}");
        let error = result.map(drop).unwrap_err().to_string();
        assert!(error.contains("268435456 bytes"), "{shown}: {error}");
        assert!(most <= MOST, "{shown}: {most} bytes");
    }
}
