//! Makes a second copy of the production files with faults in it that a test can switch on. Each fault takes out something
//! that is there for one order of steps. A file that has changed where a fault belongs fails the build.

use std::path::Path;
use std::{env, fs};

/// The file, the fault's name, the text that it replaces, and the text with the fault in it.
const FAULTS: [(&str, &str, &str, &str); 6] = [
    (
        "job.rs",
        "an earlier attempt may stream",
        "answer.as_ref().filter(|_| owed.attempt == attempt) else",
        "answer.as_ref().filter(|_| owed.attempt == attempt || FAULT) else",
    ),
    (
        "job.rs",
        "the slot goes back after the answer",
        "    drop(answer.slot);\n    // A caller that has gone has dropped its receiver; it wants no answer.\n    if let Err(unwanted) = answer.done.send(result) {\n        reap(unwanted);\n    }\n",
        "    let slot = if FAULT { Some(answer.slot) } else { drop(answer.slot); None };\n    if let Err(unwanted) = answer.done.send(result) {\n        reap(unwanted);\n    }\n    drop(slot);\n",
    ),
    (
        "intake.rs",
        "who is first is seen before the push",
        "        match &mut *self.lock() {\n            Some(arrivals) => {\n                arrivals.push(arrival);\n                if arrivals.len() == 1 {",
        "        let first = self.lock().as_ref().is_some_and(Vec::is_empty);\n        match &mut *self.lock() {\n            Some(arrivals) => {\n                arrivals.push(arrival);\n                if (if FAULT { first } else { arrivals.len() == 1 }) {",
    ),
    (
        "intake.rs",
        "a pool that dies leaves its intake open",
        "let arrivals = self.0.lock().take();",
        "let arrivals = if FAULT { None } else { self.0.lock().take() };",
    ),
    (
        "entry/slots.rs",
        "a waiter that goes away looks before it closes",
        "        self.granted.close();\n",
        "        if !FAULT { self.granted.close(); }\n",
    ),
    (
        "client/reply.rs",
        "the end is told although chunks came just before it",
        "Poll::Ready(self.chunks.try_recv().ok())",
        "Poll::Ready(if FAULT { None } else { self.chunks.try_recv().ok() })",
    ),
];

const FILES: [&str; 7] = [
    "job.rs",
    "intake.rs",
    "entry.rs",
    "entry/slots.rs",
    "entry/pace.rs",
    "client/gate.rs",
    "client/reply.rs",
];

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let (source, target) =
        (Path::new(&manifest).join("../actors/src"), env::var("OUT_DIR").expect("cargo sets it"));
    let target = Path::new(&target).join("planted");
    for folder in ["entry", "client"] {
        fs::create_dir_all(target.join(folder)).expect("the folder can be made");
    }
    for file in FILES {
        let path = source.join(file);
        println!("cargo::rerun-if-changed={}", path.display());
        let mut text = fs::read_to_string(&path).expect("the production file is there");
        for (_, name, right, wrong) in FAULTS.iter().filter(|fault| fault.0 == file) {
            assert_eq!(text.matches(right).count(), 1, "where does the fault {name:?} belong in {file}?");
            text = text.replace(right, &wrong.replace("FAULT", &format!("crate::is_planted({name:?})")));
        }
        fs::write(target.join(file), text).expect("the copy can be written");
    }
    let tree = format!(
        "#[path = {root:?}]\nmod production {{ pub(crate) mod job; pub(crate) mod intake; pub(crate) mod entry; }}\n\
         #[path = {client:?}]\nmod client {{ pub(crate) mod gate; pub(crate) mod reply;\n\
         #[path = {scenarios:?}] pub(crate) mod scenarios;\n pub(crate) use crate::stand_ins::client::*; }}\n",
        root = target,
        client = target.join("client"),
        scenarios = Path::new(&manifest).join("tests/support/scenarios.rs"),
    );
    fs::write(target.join("tree.rs"), tree).expect("the list can be written");
}
