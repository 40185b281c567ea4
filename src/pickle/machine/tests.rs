//! Opcodes that are executed, refused and bounded.

use super::*;

fn value(pickle: &[u8]) -> Result<Value, String> {
    let (values, _) = run(pickle)?;
    values.get(values.root).cloned()
}

#[test]
fn whole_numbers_have_signs_and_any_length() {
    assert_eq!(value(b"J\xff\xff\xff\xff."), Ok(Value::Whole(-1)));
    assert_eq!(value(b"\x8a\x00."), Ok(Value::Whole(0)));
    assert_eq!(value(b"\x8a\x02\x00\x80."), Ok(Value::Whole(-32768)));
    assert_eq!(value(b"M\x00\x80."), Ok(Value::Whole(32768)));
    assert!(matches!(value(b"\x8a\x09123456789."), Ok(Value::Long(bytes)) if bytes.len() == 9));
}

#[test]
fn what_is_used_twice_is_there_once() {
    // Forty tuples, each of the one before twice.
    let mut pickle = b")q\x00".to_vec();
    for place in 0..40 {
        pickle.extend([b'h', place, b'h', place, 0x86, b'q', place + 1]);
    }
    pickle.push(b'.');
    let (values, length) = run(&pickle).unwrap();
    assert_eq!((values.values.len(), length), (41, pickle.len()));
}

#[test]
fn values_in_each_other_take_no_stack() {
    let mut pickle = vec![b')'];
    pickle.extend(std::iter::repeat_n(0x85, 1 << 20));
    pickle.push(b'.');
    assert!(run(&pickle).is_ok());
}

#[test]
fn names_of_classes_are_bounded() {
    // Of 1,024 bytes, and of one more; both as lines and as texts that are recalled.
    for (module, taken) in [(1023, true), (1024, false)] {
        let module = vec![b'm'; module];
        let lines = [b"c", module.as_slice(), b"\nn\n."].concat();
        let length = u32::try_from(module.len()).unwrap().to_le_bytes();
        let recalled = [b"X", &length[..], &module, b"q\x00X\x01\x00\x00\x00nq\x010h\x00h\x01\x93."].concat();
        for pickle in [lines, recalled] {
            let result = value(&pickle);
            assert_eq!(result.is_ok(), taken, "{result:?}");
            assert!(taken || result.err().unwrap().contains("1025"));
        }
    }
}

#[test]
fn what_is_remembered_is_bounded() {
    let pickle = [vec![b'N'], vec![0x94; MAX_VALUES + 1], vec![b'.']].concat();
    assert!(run(&pickle).err().unwrap().contains("remembers"));
}

#[test]
fn wrong_pickles_end_in_errors() {
    let wrong: [&[u8]; 14] = [
        b"",
        b".",
        b"t.",
        b"0.",
        b"(0.",
        b"a.",
        b"]a.",
        b"NN0s.",
        b"h\x00.",
        b"q\x00.",
        b"X\xff\xff\xff\xffab.",
        b"cos\nsystem",
        b"}(NNNu.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
    ];
    for pickle in wrong {
        assert!(run(pickle).is_err(), "{pickle:?}");
    }
    assert!(run(b"\x8f.").err().unwrap().contains("0x8f"));
    assert!(run(&[vec![b'N'; MAX_VALUES + 1], vec![b'.']].concat()).err().unwrap().contains("values"));
}
