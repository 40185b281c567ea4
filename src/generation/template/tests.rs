//! Templates in the styles of published ones against what transformers makes of them, and hostile ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use model_actors::Role;

use super::*;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Entry>,
    text: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    role: String,
    content: String,
}

pub(super) fn compile(source: &str) -> Result<ChatTemplate> {
    let tokens = SpecialTokens {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        unk: Some("<unk>".into()),
        ..SpecialTokens::default()
    };
    ChatTemplate::new(source, tokens, Path::new("tokenizer_config.json"))
}

fn render(source: &str, content: &str) -> Result<String> {
    compile(source)?.render(Conversation::of(&[Message::user(content)]))
}

#[test]
fn prompts_are_those_of_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/chat_templates.json");
    let cases = serde_json::from_slice::<Cases>(&std::fs::read(path).unwrap()).unwrap().cases;
    assert!(cases.len() > 30);
    for Case { name, template, messages, text, error } in cases {
        let role = |name: &str| match name {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        };
        let messages: Vec<Message> =
            messages.into_iter().map(|entry| Message::new(role(&entry.role), entry.content)).collect();
        let rendered = compile(&template).unwrap().render(Conversation::of(&messages));
        match (text, error) {
            (Some(text), _) => assert_eq!(rendered.unwrap(), text, "{name}"),
            (None, Some(error)) => {
                let words = rendered.unwrap_err().to_string();
                assert!(words.contains(&error), "{name}: {words}");
            }
            (None, None) => panic!("{name}: nothing is expected"),
        }
    }
}

#[test]
fn a_template_that_is_none_is_refused_when_it_is_read() {
    for source in ["{% for %}", "{{ ", "{% if %}", "{{ 1 +  }}", "{% unknown %}"] {
        let error = compile(source).err().expect(source);
        assert!(matches!(error, Error::InvalidConfig { .. }), "{source}: {error}");
    }
    let error = compile(&"x".repeat(MAX_TEMPLATE_BYTES + 1)).err().unwrap();
    assert!(error.to_string().contains("at most"), "{error}");
    // Nesting that would exhaust the stack of a careless parser.
    for source in [
        "{{ ".to_owned() + &"(".repeat(100_000),
        "{% if 1 %}".repeat(10_000),
        "{{ ".to_owned() + &"[".repeat(50_000),
    ] {
        assert!(compile(&source).is_err());
    }
}

#[test]
fn a_hostile_template_comes_to_an_end() {
    let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    let error = render(endless, "x").unwrap_err();
    assert!(error.to_string().contains("steps"), "{error}");

    let large = "{% for a in range(10000) %}{{ messages[0].content }}{% endfor %}";
    let error = render(large, &"x".repeat(10_000)).unwrap_err();
    assert!(error.to_string().contains("bytes"), "{error}");

    let deep = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(matches!(render(deep, "x"), Err(Error::InvalidInput(_))));
    let files = "{% include 'config.json' %}";
    assert!(render(files, "x").is_err());
    let json = "{{ messages | tojson(indent=1000000000) }}";
    assert!(render(json, "x").is_err());
}

#[test]
fn a_template_cannot_fill_the_memory_on_its_way() {
    let double = "{% set a = a ~ a %}".repeat(60);
    let nested = "{% set a = [a, a] %}".repeat(60);
    let hostile = [
        format!("{{% set a = 'x' %}}{double}{{{{ a | length }}}}"),
        format!("{{% set a = 'x' %}}{}{{{{ a | length }}}}", double.replace('~', "+")),
        format!("{{% set a = 'x' %}}{nested}{{{{ a }}}}"),
        format!("{{% set a = 'x' %}}{nested}{{% set b = a ~ '' %}}"),
        "{% set n = namespace(a='x') %}{% for i in range(90) %}{% set n.a = n.a + n.a %}{% endfor %}"
            .to_owned(),
        "{% macro f(a) %}{{ f(a ~ a) }}{% endmacro %}{{ f('x') }}".to_owned(),
        "{% macro f(a='x') -%}{{ f(a=a ~ a) }}{% endmacro %}{{ f() }}".to_owned(),
        "{% for a in ['x'] recursive %}{{ loop([a ~ a]) }}{% endfor %}".to_owned(),
        format!("{{% set a = 'x' %}}{}", "{% with a = a ~ a %}".repeat(60) + &"{% endwith %}".repeat(60)),
        format!("{{% set a = 'x' %}}{}", "{% for a in [a ~ a] %}".repeat(60) + &"{% endfor %}".repeat(60)),
        "{% set a = 'x' %}".to_owned() + &"{% set a %}{{ a }}{{ a }}{% endset %}".repeat(60),
        "{% set a %}{% for i in range(99999) %}".to_owned()
            + &"raw ".repeat(9999)
            + "{% endfor %}{% endset %}",
        "{% set a = messages[0].content %}{{ a | replace('x', a) | replace('x', a) | length }}".to_owned(),
        "{% set a = messages[0].content %}{{ a.replace('x', a).replace('x', a) | length }}".to_owned(),
        "{% set a = messages[0].content %}{% set b = a.replace('', a) | join(a) | join(a) %}".to_owned(),
        "{% set a = 'x' * 99999999 %}".to_owned(),
        "{% set a = [0] * 99999999 %}".to_owned(),
        "{{ '%99999999s' | format('x') }}".to_owned(),
        "{{ 'x' | indent(99999999) }}".to_owned(),
        "{{ 'x' | indent(width=99999999) }}".to_owned(),
    ];
    for source in hostile {
        let shown = &source[..source.len().min(80)];
        let error =
            render(&source, &"x".repeat(20_000)).err().unwrap_or_else(|| panic!("{shown} is rendered"));
        assert!(matches!(error, Error::InvalidInput(_) | Error::InvalidConfig { .. }), "{shown}: {error}");
    }
}

/// Templates of so many bytes that nest one thing, or make one chain of it.
fn deep(bytes: usize) -> Vec<String> {
    let parts = [
        ("{{ ", "-", "a }}"),
        ("{{ ", "not ", "a }}"),
        ("{{ a", "|upper", " }}"),
        ("{{ a", ".b", " }}"),
        ("{{ a", "[0]", " }}"),
        ("{{ a", "[1:]", " }}"),
        ("{{ a", "()", " }}"),
        ("{{ a", ".b()", " }}"),
        ("{{ a", " and a", " }}"),
        ("{{ a", " or a", " }}"),
        ("{{ a", " == a", " }}"),
        ("{{ a", " in a", " }}"),
        ("{{ a", " is defined", " }}"),
        ("{{ a is eq ", "-", "1 }}"),
        ("{{ a", " if a else a", " }}"),
        ("{{ a", " if a", " }}"),
        ("{{ a", " ~ a", " }}"),
        ("{{ a", " + 1", " }}"),
        ("{{ a", " - 1", " }}"),
        ("{{ a", " * 1", " }}"),
        ("{{ a", " ** 1", " }}"),
        ("{{ 1", " + 1", " }}"),
        ("{{ ", "[", " }}"),
        ("{{ ", "(", " }}"),
        ("{{ ", "{1: ", " }}"),
        ("{{ ", "a(", " }}"),
        ("{{ a(", "a, ", ") }}"),
        ("{% if a %}", "{% elif a %}", "{% endif %}"),
        ("", "{% if a %}", ""),
        ("", "{% for a in b %}", ""),
        ("", "{% set a %}", ""),
        ("", "{% macro a() %}", ""),
        ("", "{% call a() %}", ""),
        ("", "{% with a = a %}", ""),
        ("", "{% filter upper %}", ""),
        ("{% filter upper", "|upper", " %}{% endfilter %}"),
        ("{% set a", "|upper", " %}{% endset %}"),
        ("{% set a", ".a", " = 1 %}"),
        ("{% set ", "(", "a = 1 %}"),
        ("{% for ", "(", "a in b %}"),
    ];
    let filled = |(first, middle, last): (&str, &str, &str)| {
        first.to_owned() + &middle.repeat((bytes - first.len() - last.len()) / middle.len()) + last
    };
    parts.map(filled).into()
}

/// The process would end at an overflow of the stack.
#[test]
fn a_template_may_be_as_deep_as_it_likes() {
    for bytes in [300, 5_000, 40_000, MAX_TEMPLATE_BYTES] {
        for source in deep(bytes) {
            if let Err(error) = render(&source, "x") {
                assert!(
                    matches!(error, Error::InvalidInput(_) | Error::InvalidConfig { .. })
                        && !error.to_string().contains("took longer"),
                    "{source:.30}: {error}"
                );
            }
        }
    }
    let chain = "{{ messages[0].content".to_owned() + &" ~ '!'".repeat(300) + " }}";
    assert_eq!(render(&chain, "x").unwrap().len(), 301);
    let template = "{{ ".to_owned() + &"-".repeat(5000) + "1 }}";
    let error = render(&template, "x").unwrap_err();
    assert!(error.to_string().contains("more than 1000 of its tags or operators"), "{error}");
}

#[test]
fn a_step_that_is_long_is_counted() {
    let text = "{% set a = messages[0].content %}";
    let steps = [
        "{% if a|list|sort|length == 1 %}{% endif %}",
        "{% if 'q' in a %}{% endif %}",
        "{% if a ~ 'x' == a %}{% endif %}",
        "{% if a.split('x')|unique|list %}{% endif %}",
        "{% set b = a|trim(a) %}",
        "{% set b = a.strip(a) %}",
        "{% set b = a[::-1] %}",
        "{% set b = a|upper|lower|title %}",
        "{% set b = a.count('q') + a.find('q') %}",
        "{% set b = a|list|map('upper')|join %}",
    ];
    for step in steps {
        let source = format!("{text}{{% for i in range(90000) %}}{step}{{% endfor %}}");
        let error = render(&source, &"zyxwvuts".repeat(1 << 16)).unwrap_err();
        assert!(error.to_string().contains("268435456 bytes"), "{step}: {error}");
    }
    // By name as by place.
    for call in [
        "'x'|center(width=300000000)",
        "[1]|batch(linecount=5000000, fill_with=0)",
        "[1]|slice(slices=5000000)",
        "(a ~ a)|replace(old='z', new=a)",
        "a|list|join(d=a)",
    ] {
        let error = render(&format!("{text}{{{{ {call} }}}}"), &"zyxwvuts".repeat(1 << 12)).unwrap_err();
        assert!(error.to_string().contains("268435456 bytes"), "{call}: {error}");
    }
    // Of a value that stands in itself, each operation would take longer than there is time.
    let nested = "{% set a = [1] %}".to_owned() + &"{% set a = [a, a] %}".repeat(60);
    let steps = [
        "{{ a }}",
        "{{ a == a }}",
        "{{ a < a < a }}",
        "{{ a in [a] }}",
        "{{ a is eq a }}",
        "{{ a ~ 'x' }}",
        "{{ a|string }}",
        "{{ a|tojson }}",
        "{{ [a]|join }}",
        "{{ {}[a] }}",
        "{{ {a: 1} }}",
        "{{ {}.get(a) }}",
        "{{ raise_exception(a) }}",
        "{{ strftime_now(a) }}",
        "{{ [a, a]|sort }}",
        "{{ [a, a]|unique }}",
        "{{ [a]|map('string') }}",
        "{{ a.count(1) }}",
        "{{ {'x': a}|dictsort }}",
    ];
    for step in steps {
        assert!(render(&format!("{nested}{step}"), "x").is_err(), "{step}");
    }
}

#[test]
fn a_value_that_would_hold_itself_is_refused() {
    for kept in ["ns", "[ns]", "{'a': ns}", "namespace(a=ns)", "[1] + [ns]", "loop"] {
        let source = format!(
            "{{% set ns = namespace() %}}{{% for i in [1] %}}{{% set ns.a = {kept} %}}{{% endfor %}}"
        );
        let error = render(&source, "x").unwrap_err();
        assert!(error.to_string().contains("kept in a namespace"), "{kept}: {error}");
    }
    assert!(render("{% for i in [1] %}{{ loop.changed(loop) }}{% endfor %}", "x").is_err());
    let source = "{% set ns = namespace(a=1) %}{% set ns.b = ns.items() %}{{ ns.b }}";
    assert_eq!(render(source, "x").unwrap(), "[('a', 1)]");
}

/// minijinja divides by the number of arguments.
#[test]
fn a_loop_that_cycles_through_nothing_is_refused() {
    for arguments in ["", "*[]", "**{}"] {
        let source = format!("{{% for i in [1] %}}{{{{ loop.cycle({arguments}) }}}}{{% endfor %}}");
        let error = render(&source, "x").unwrap_err();
        assert!(error.to_string().contains("without arguments"), "{error}");
    }
    assert_eq!(render("{% for i in [1, 2] %}{{ loop.cycle('a', 'b') }}{% endfor %}", "x").unwrap(), "ab");
}

/// A value that stands in itself so often that no reading of all of it would end. No template can make one.
fn doubled(times: usize) -> Value {
    let text = Value::from("x".repeat(1 << 20));
    (0..times).fold(text, |value, _| Value::from(vec![value.clone(), value]))
}

/// Each filter and test is given the value at each of its places, and in what it goes through.
#[test]
fn everything_that_can_be_called_refuses_a_value_that_is_too_large() {
    let huge = doubled(60);
    let inputs = [
        huge.clone(),
        context! { x => huge.clone() },
        Value::from_iter([(1, 1), (2, 2)].map(|(key, value)| (Value::from(key), Value::from(value)))),
        Value::from(vec!["x", "y"]),
    ];
    let assert_ends = |call: &str, input: &Value| {
        let values = context! { a => huge.clone(), i => input.clone(), l => vec![input.clone()] };
        let rendered = compile(call).and_then(|template| template.render_values(values));
        let words = rendered.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(!words.contains("took longer") && !words.contains("syntax error"), "{call}: {words}");
    };
    let (filters, tests) = (builtins::filters(), builtins::tests());
    assert!(filters.len() > 30 && tests.len() > 30);
    let arguments = [
        "",
        "a",
        "1, a",
        "'x', a",
        "attribute=a",
        "attribute='x'",
        "attribute='x', default=a",
        "default=a",
        "d=a",
    ];
    for input in &inputs {
        for arguments in arguments {
            let comma = if arguments.is_empty() { "" } else { ", " };
            for (filter, ..) in &filters {
                assert_ends(&format!("{{% set r = i|{filter}({arguments}) %}}"), input);
            }
            for (test, ..) in tests.iter().filter(|(test, ..)| test.chars().all(char::is_alphabetic)) {
                assert_ends(&format!("{{% set r = l|select('{test}'{comma}{arguments}) %}}"), input);
            }
        }
    }
    // What is made is looked through, which ends at once where it is too deep.
    for (filter, ..) in &filters {
        for arguments in ["", ", a", ", 'x', a"] {
            assert_ends(&format!("{{% set r = l|map('{filter}'{arguments}) %}}"), &doubled(70));
            assert_ends(&format!("{{% set r = l|map('{filter}'{arguments}) %}}"), &inputs[2]);
        }
    }
    let values = context! { a => huge, m => inputs[2].clone() };
    let error = compile("{{ m|attr(a) }}").unwrap().render_values(values).unwrap_err();
    assert!(error.to_string().contains("268435456 bytes"), "{error}");
}

#[test]
fn attributes_are_short_and_few() {
    let keys = "0,".repeat(300_000);
    let path = "0.".repeat(300_000);
    let list = "{% set a = messages[0].content|list %}";
    for call in [
        "a|sort(attribute=p)",
        "a|min(attribute=p)",
        "a|max(attribute=p)",
        "a|unique(attribute=p)",
        "a|groupby(p)",
        "a|groupby(attribute=p)",
        "a|map(attribute=p)",
        "a|map(attribute=[p])",
        "a|join('', p)",
        "a|join(attribute=p)",
        "a|selectattr(p)",
        "a|rejectattr(p, 'defined')",
    ] {
        for (part, times) in [("0,", keys.len() / 2), ("0.", path.len() / 2)] {
            let source = format!("{list}{{% set p = '{part}' * {times} %}}{{{{ {call}|list|length }}}}");
            let error = render(&source, &"x".repeat(2000)).unwrap_err().to_string();
            assert!(error.contains("an attribute"), "{call}: {error}");
        }
    }
    let long = "{% set a = [messages[0].content] * 1000000 %}{{ a|map(attribute='999999')|list|length }}";
    let error = render(long, &"x".repeat(1 << 20)).unwrap_err();
    assert!(error.to_string().contains("268435456 bytes"), "{error}");
    let source = "{% set a = [{'b': {'c': 2}, 'd': 1}, {'b': {'c': 1}, 'd': 2}] %}\
                  {{ a|sort(attribute='b.c, d')|map(attribute='d')|join }}{{ a|map(attribute='b.c')|sum_of }}";
    let source = source.replace("|sum_of", "|join");
    assert_eq!(render(&source, "x").unwrap(), "2121");
}

#[test]
fn items_of_texts_are_counted_where_they_are_looked_up() {
    let text = "{% set a = messages[0].content * 64 %}";
    for step in [
        "{% for i in range(100000) if not a[63999999] %}{% endfor %}",
        &("{% set b = [".to_owned() + &"a[-1],".repeat(10_000) + "] %}"),
        "{% for i in range(100000) %}{% if a[-1] %}{% endif %}{% endfor %}",
        "{% for i in range(100000) %}{% if a|length %}{% endif %}{% endfor %}",
        "{% set l = a[:90000]|list %}{% for i in l if (l + l)[99999] %}{% endfor %}",
    ] {
        let error = render(&format!("{text}{step}"), &"x".repeat(1_000_000)).unwrap_err();
        assert!(error.to_string().contains("268435456 bytes"), "{step:.60}: {error}");
    }
}

#[test]
fn values_are_nested_no_deeper_than_they_are_read() {
    let deeper = "{% set a = [a] %}".repeat(3000);
    let rounds = "{% for a in [[]] recursive %}".to_owned() + &deeper + "{{ loop([a]) }}{% endfor %}";
    let error = render(&rounds, "x").unwrap_err();
    assert!(error.to_string().contains("64 levels"), "{error}");
    for step in
        ["[a]", "(a,)", "{'a': a}", "dict(a=a)", "[none]|map('default', a, true)|list", "[a]|groupby('x')"]
    {
        let source = "{% set a = [] %}".to_owned() + &format!("{{% set a = {step} %}}").repeat(70);
        let error = render(&source, "x").unwrap_err();
        assert!(error.to_string().contains("64 levels"), "{step}: {error}");
    }
    let within = "{% set a = [] %}".to_owned() + &"{% set a = [a] %}".repeat(60) + "{{ a == [a] }}";
    assert_eq!(render(&within, "x").unwrap(), "False");
}

#[test]
fn a_comparison_costs_the_smaller_side() {
    let source = "{% for message in messages %}{% if message == messages[-1] %}last{% endif %}{% endfor %}";
    let mut messages = vec![Message::user("x"); 50];
    messages.push(Message::user("y".repeat(1 << 20)));
    assert_eq!(compile(source).unwrap().render(Conversation::of(&messages)).unwrap(), "last");
    let pairs = "{{ [1, 'a', [1], {'a': 1}, none, true] == [1, 'a', [1], {'a': 1}, none, true] }} {{ 1 != 1.0 }} \
                 {{ undefined == none }} {{ [1] == (1,) }} {{ 'a' != 'b' }}";
    assert_eq!(render(pairs, "x").unwrap(), "True False False False True");
}

#[test]
fn text_is_indented() {
    let source = "{{ {'a': [1]}|tojson(indent=2)|indent(2) }}|{{ 'a\nb'|indent(width=3, first=true) }}";
    assert_eq!(render(source, "x").unwrap(), "{\n    \"a\": [\n      1\n    ]\n  }|   a\n   b");
}

#[test]
fn numbers_texts_and_lists_are_multiplied() {
    assert_eq!(
        render("{{ 2 * 3 }} {{ 'ab' * 2 }} {{ [1] * 2 }} {{ 1.5 * 2 }}", "x").unwrap(),
        "6 abab [1, 1] 3.0"
    );
}

#[test]
fn an_error_names_the_limit_that_was_hit() {
    let source = |times: usize| {
        let double = "{% set a = a ~ a %}".repeat(times);
        format!("{{% set a = messages[0].content %}}{double}{{{{ a | length }}}}")
    };
    let error = render(&source(60), "x").unwrap_err().to_string();
    assert!(error.contains("268435456 bytes") && !error.contains("steps"), "{error}");
    let nested = format!("{{% set a = 'x' %}}{}{{{{ a }}}}", "{% set a = [a] %}".repeat(70));
    let error = render(&nested, "x").unwrap_err().to_string();
    assert!(error.contains("64 levels") && !error.contains("steps"), "{error}");
    let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    let error = render(endless, "x").unwrap_err().to_string();
    assert!(error.contains("1000000 steps") && !error.contains("bytes"), "{error}");
    assert!(render(&source(4), "x").is_ok());
}

#[test]
fn a_prompt_of_the_largest_size_is_not_too_much() {
    let source = "{% for message in messages %}{% set text = message.content | trim %}{{ '<' + message.role + '>' }}                  {% if '</x>' in text %}{% set text = text.split('</x>')[-1] %}{% endif %}{{ text }}{% endfor %}";
    let prompt = "word ".repeat((4 << 20) / 5);
    assert!(render(source, &prompt).unwrap().contains("word word"));
    let messages: Vec<Message> = (0..1024).map(|_| Message::user("x".repeat(4096))).collect();
    assert!(compile(source).unwrap().render(Conversation::of(&messages)).is_ok());
}

#[test]
fn what_is_asked_is_no_template() {
    let text = "{{ 7 * 7 }}{% raw %}";
    assert_eq!(render("{{ messages[0].content }}", text).unwrap(), text);
}

#[test]
fn time_is_told() {
    let text = render("{{ strftime_now('%Y-%m-%d') }}", "x").unwrap();
    assert_eq!(text.len(), 10);
    assert!(text.starts_with("20"), "{text}");
}
