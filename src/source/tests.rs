//! Names of sources, and of the files in them.

use super::*;

#[test]
fn a_file_name_cannot_lead_out_of_the_model() {
    let files = Files::directory(Path::new("/models/mine"));
    assert!(files.check_name("1_Pooling/config.json").is_ok());
    let long = "a".repeat(names::MAX_PATH_BYTES + 1);
    let leaving = r"../secret /etc/passwd a/../../b a/ a//b ./a a/./b .. a/.. a\..\b a?b=c a#b %2e%2e/secret C:/x C:x a/b:c";
    for name in leaving.split(' ').chain(["", "a\nb", "a\0", "https://example.org/a?", &long]) {
        assert!(matches!(files.check_name(name), Err(Error::InvalidConfig { .. })), "{name}");
    }
}

#[test]
fn the_folder_of_a_bare_file_name_is_this_one() {
    let folders = ["model.gguf", "models/model.gguf", "/model.gguf"].map(|file| parent_of(Path::new(file)));
    assert_eq!(folders, [".", "models", "/"].map(Path::new));
}

#[test]
fn a_path_is_no_name_of_a_repository() {
    let wrong =
        r"./models/mine /models/mine ../mine a/b/c a/ a/.. a/b..c a--b/c a/b?c a/b#c a/%2e%2e a\b/c .. a/b@c";
    for name in wrong.split(' ').chain(["", "a b"]) {
        let checked = Source::repository(name).check();
        let refused = matches!(&checked, Err(Error::InvalidSetting { setting, .. }) if setting == "source");
        assert!(refused, "{name}: {checked:?}");
    }
    for name in ["..", "a/../b", "/a", "a?b", "a#b", "%2e%2e", "", "a\\b", "a//b"] {
        let sources = [
            Source::repository("a/b").revision(name),
            Source::repository("a/b").gguf(format!("{name}/c.gguf")),
        ];
        for source in sources {
            assert!(matches!(source.check(), Err(Error::InvalidSetting { .. })), "{source}");
        }
    }
    #[cfg(feature = "hub")]
    for name in ["gpt2", "owner/name.v1_2-x"] {
        assert!(Source::repository(name).revision("refs/pr/1").check().is_ok(), "{name}");
    }
}

#[test]
fn a_text_is_a_directory_unless_it_can_be_a_repository() {
    assert_eq!(Source::parse("."), Source::directory("."));
    assert_eq!(Source::parse("/no/such"), Source::directory("/no/such"));
    assert_eq!(Source::parse("a/b/c"), Source::directory("a/b/c"));
    assert_eq!(Source::parse("a/b"), Source::repository("a/b"));
    let file = Source::repository("a/b").gguf("c.gguf");
    assert_eq!(Source::parse("a/b/c.gguf"), file);
    assert_eq!(Source::parse("a/b/c.gguf@main"), file.revision("main"));
    assert_eq!(Source::parse("a/b/c/d.gguf"), Source::directory("a/b/c/d.gguf"));
    assert_eq!(Source::parse("a/b.gguf"), Source::directory("a/b.gguf"));
    // A folder of this repository is here, whatever of it is not.
    assert_eq!(Source::parse("tests/mistyped"), Source::directory("tests/mistyped"));
    assert_eq!(Source::parse("tests/name@main"), Source::repository("tests/name").revision("main"));
}

#[test]
fn what_lies_in_the_place_of_a_file_is_told_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("config.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n");
    write("tokenizer.json", "<!DOCTYPE html><html>Sign in</html>");
    write("model.gguf", "../blobs/00");
    let (files, context) = (Files::directory(folder.path()), LoadContext::detached(&"placeholders".into()));
    for (name, found) in [("config.json", "Git LFS"), ("tokenizer.json", "HTML"), ("model.gguf", "link")] {
        let error = files.required(name, &context).unwrap_err();
        assert!(matches!(&error, Error::Placeholder { file, .. } if file.ends_with(name)), "{name}: {error}");
        assert!(error.to_string().contains(found), "{error}");
        assert_eq!(read(&folder.path().join(name), 1 << 10).unwrap_err(), error);
    }
    let error = files.required_json::<serde_json::Value>("config.json", &context).unwrap_err();
    assert!(matches!(&error, Error::Placeholder { .. }), "{error}");
}
