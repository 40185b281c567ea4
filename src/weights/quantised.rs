//! Safetensors whose weights are quantised: the methods that `quantization_config`, other files or the tensors name, and 8-bit floats with their
//! scales, which become 32-bit floats as they are read. Every other method is refused by its name, because its tensors
//! stand for others than their names and shapes say.

use std::path::{Path, PathBuf};

use half::f16;
use model_actors::LoadContext;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::source::Files;

/// Endings of the names of scales, after the whole name of a weight. All are factors, whatever they are called.
pub(super) const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// Advice of an error.
const SUPPORTED: &str = "8-bit floats with scales (fp8, fbgemm_fp8, and FP8 of modelopt and compressed-tensors), and mxfp4 \
                         of GPT-OSS; take the model's weights without quantisation, or a GGUF file of it";

/// Rows and columns of a block that shares a scale, where the configuration tells it.
pub(super) type Block = Option<[usize; 2]>;

/// The parts of a `config.json` that tell about quantisation.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    quantization_config: Option<Value>,
    /// An older name.
    compression_config: Option<Value>,
    text_config: Option<Value>,
}

/// Reads the configuration beside the weights in a folder, which is named with a slash at its end or empty.
///
/// # Errors
/// [`Error::UnsupportedSetting`], which names the method; those of reading the file.
pub(super) fn block_of(files: &Files, folder: &str, context: &LoadContext) -> Result<Block> {
    let name = format!("{folder}config.json");
    let Some(Value::Object(config)) = files.optional_json(&name, context)? else { return Ok(None) };
    let config: Config = serde_json::from_value(Value::Object(config)).unwrap_or_default();
    let inner = config.text_config.as_ref().and_then(|text| text.get("quantization_config").cloned());
    let own = config.quantization_config.or(config.compression_config).or(inner);
    match own {
        None | Some(Value::Null) => Ok(None),
        Some(settings) => block(&settings, Path::new(&name)),
    }
}

/// Endings of tensors that only a quantised model has, with the method that writes them.
const MARKS: [(&str, &str); 5] = [
    (".qweight", "gptq or awq"),
    (".SCB", "bitsandbytes"),
    (".absmax", "bitsandbytes"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_2", "modelopt (NVFP4)"),
];
/// Files beside the weights that some methods have in place of `quantization_config`.
const SETTINGS: [(&str, &str); 3] =
    [("quantize_config.json", "gptq"), ("quant_config.json", "awq"), ("hf_quant_config.json", "modelopt")];

/// Refuses weights with tensors of a method that no configuration told of.
///
/// # Errors
/// [`Error::UnsupportedSetting`], which names the method; those of looking for a file.
pub(super) fn check_names<'a>(
    mut names: impl Iterator<Item = &'a String>,
    files: &Files,
    folder: &str,
    context: &LoadContext,
) -> Result<()> {
    let mark =
        |name: &'a String| MARKS.iter().find(|(ending, _)| name.ends_with(ending)).map(|mark| (name, mark.1));
    let Some((tensor, mut method)) = names.find_map(mark) else { return Ok(()) };
    let mut file = format!("{folder}config.json");
    for (name, of) in SETTINGS {
        let name = format!("{folder}{name}");
        if files.exists(&name, context)? {
            (file, method) = (name, of);
            break;
        }
    }
    Err(Error::UnsupportedSetting {
        file: file.into(),
        what: "the quantisation".into(),
        found: format!("{method}, as of the tensor {tensor}"),
        supported: SUPPORTED.into(),
    })
}

fn block(settings: &Value, file: &Path) -> Result<Block> {
    let text = |name: &str| settings.get(name).and_then(Value::as_str);
    let has = |name: &str| settings.get(name).and_then(Value::as_bool).unwrap_or(false);
    let method = match text("quant_method") {
        Some(method) => method,
        None if has("load_in_4bit") || has("load_in_8bit") => "bitsandbytes",
        None => "(none named)",
    };
    // The experts of GPT-OSS, whose tensors have names of their own.
    if method == "mxfp4" {
        return Ok(None);
    }
    let is_float_8 = match method {
        "fp8" | "fbgemm_fp8" => true,
        "compressed-tensors" => text("format") == Some("float-quantized"),
        "modelopt" => text("quant_algo").is_some_and(|kind| kind.starts_with("FP8")),
        _ => false,
    };
    if !is_float_8 {
        let details =
            ["format", "quant_algo"].into_iter().find_map(text).map(|detail| format!(" ({detail})"));
        return Err(Error::UnsupportedSetting {
            file: PathBuf::from(file),
            what: "quantization_config.quant_method".into(),
            found: format!("{method}{}", details.unwrap_or_default()),
            supported: SUPPORTED.into(),
        });
    }
    let sides = settings.get("weight_block_size").and_then(Value::as_array);
    let sides: Option<Vec<usize>> =
        sides.map(|sides| sides.iter().filter_map(|side| usize::try_from(side.as_u64()?).ok()).collect());
    Ok(sides.and_then(|sides| <[usize; 2]>::try_from(sides).ok()).filter(|sides| !sides.contains(&0)))
}

/// The number that an 8-bit float of 4 bits of exponent and 3 of mantissa stands for (E4M3, without infinities).
pub(super) fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2.0f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2.0f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// The same with 5 bits of exponent and 2 of mantissa: the upper half of a 16-bit float.
pub(super) fn e5m2(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// A power of two (E8M0).
pub(super) fn e8m0(byte: u8) -> f32 {
    match byte {
        255 => f32::NAN,
        byte => 2.0f32.powi(i32::from(byte) - 127),
    }
}

/// Multiplies weights of this shape with scales: one for all, one for each row, or one for each block of rows and
/// columns. Without a block in the configuration its sides are powers of two, which follow from the shapes.
///
/// # Errors
/// Nothing, if the shapes do not fit each other.
pub(super) fn scale(
    values: &mut [f32],
    shape: &[usize],
    scales: &[f32],
    scales_shape: &[usize],
    block: Block,
) -> Option<()> {
    if let [scale] = scales {
        values.iter_mut().for_each(|value| *value *= scale);
        return Some(());
    }
    let [.., rows, columns] = *shape else { return None };
    let per_row = [vec![rows], vec![rows, 1]].iter().any(|each| each == scales_shape);
    let ([height, width], [lines, along]) = match *scales_shape {
        _ if per_row => ([1, columns.max(1)], [rows, 1]),
        [.., lines, along] => {
            let own = |side: usize, count: usize| {
                (0..usize::BITS - 1).map(|bit| 1 << bit).find(|size| side.div_ceil(*size) == count)
            };
            let sides = match block {
                Some(sides) => sides,
                None => [own(rows, lines)?, own(columns, along)?],
            };
            (sides, [lines, along])
        }
        _ => return None,
    };
    let batch = |shape: &[usize]| shape.iter().rev().skip(2).product::<usize>();
    let fits = rows.div_ceil(height) == lines && columns.div_ceil(width) == along && columns > 0;
    if !fits || !per_row && batch(shape) != batch(scales_shape) || per_row && shape.len() != 2 {
        return None;
    }
    for (index, row) in values.chunks_exact_mut(columns).enumerate() {
        let line = index / rows * lines + index % rows / height;
        let scales = scales.get(line * along..(line + 1) * along)?;
        for (part, scale) in row.chunks_mut(width).zip(scales) {
            part.iter_mut().for_each(|value| *value *= scale);
        }
    }
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn methods_are_refused_by_name_but_for_8_bit_floats() {
        let read = |settings: Value| block(&settings, Path::new("config.json"));
        for method in ["gptq", "awq", "bitsandbytes", "compressed-tensors", "torchao", "quanto", "new"] {
            let error = read(json!({"quant_method": method, "bits": 4})).unwrap_err().to_string();
            assert!(error.contains(method) && error.contains("GGUF"), "{error}");
        }
        let old = read(json!({"load_in_8bit": true})).unwrap_err().to_string();
        assert!(old.contains("bitsandbytes"), "{old}");
        assert_eq!(
            read(json!({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})).unwrap(),
            None
        );
        assert!(read(json!({"bits": 4})).is_err() && read(json!("gptq")).is_err());
        let packed =
            read(json!({"quant_method": "compressed-tensors", "format": "pack-quantized"})).unwrap_err();
        assert!(packed.to_string().contains("pack-quantized"), "{packed}");
        let blocks = json!({"quant_method": "fp8", "weight_block_size": [128, 64]});
        assert_eq!(read(blocks).unwrap(), Some([128, 64]));
        for settings in [
            json!({"quant_method": "fp8", "weight_block_size": null}),
            json!({"quant_method": "fp8", "weight_block_size": [0, 64]}),
            json!({"quant_method": "fbgemm_fp8"}),
            json!({"quant_method": "compressed-tensors", "format": "float-quantized"}),
            json!({"quant_method": "modelopt", "quant_algo": "FP8"}),
        ] {
            assert_eq!(read(settings.clone()).unwrap(), None, "{settings}");
        }
    }

    #[test]
    fn eight_bits_are_the_numbers_that_candle_makes_of_them() {
        let numbers = (0..=255u8).map(|byte| {
            let theirs = candle_core::Tensor::from_raw_buffer(
                &[byte],
                candle_core::DType::F8E4M3,
                &[1],
                &candle_core::Device::Cpu,
            );
            (byte, theirs.unwrap().to_dtype(candle_core::DType::F32).unwrap().to_vec1::<f32>().unwrap()[0])
        });
        for (byte, theirs) in numbers {
            let ours = e4m3(byte);
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{byte:#x}: {ours} {theirs}");
        }
        assert_eq!([0x00, 0x01, 0x3c, 0xbc, 0x7b].map(e5m2), [0.0, 2.0f32.powi(-16), 1.0, -1.0, 57344.0]);
        assert_eq!([0, 127, 130].map(e8m0), [2.0f32.powi(-127), 1.0, 8.0]);
    }

    #[test]
    fn scales_are_for_all_for_rows_or_for_blocks() {
        let scaled = |shape: &[usize], scales: &[f32], scales_shape: &[usize], block: Block| {
            let mut values = vec![1.0; shape.iter().product()];
            scale(&mut values, shape, scales, scales_shape, block).map(|()| values)
        };
        assert_eq!(scaled(&[2, 2], &[3.0], &[], None).unwrap(), [3.0; 4]);
        assert_eq!(scaled(&[2, 2], &[3.0], &[1, 1], Some([128, 128])).unwrap(), [3.0; 4]);
        for rows in [&[2][..], &[2, 1]] {
            assert_eq!(scaled(&[2, 2], &[1.0, 2.0], rows, None).unwrap(), [1.0, 1.0, 2.0, 2.0]);
        }
        // Of 3 rows and 5 columns: blocks of 2 and 4, also where only the shapes tell.
        let blocks = [1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 4.0];
        for block in [Some([2, 4]), None] {
            assert_eq!(scaled(&[3, 5], &[1.0, 2.0, 3.0, 4.0], &[2, 2], block).unwrap(), blocks);
        }
        let experts = scaled(&[2, 1, 2], &[1.0, 2.0, 3.0, 4.0], &[2, 1, 2], Some([1, 1]));
        assert_eq!(experts.unwrap(), [1.0, 2.0, 3.0, 4.0]);
        for (shape, scales_shape) in
            [(&[3, 5][..], &[3, 2][..]), (&[4], &[2]), (&[2, 3, 5], &[2, 2]), (&[0, 0], &[2, 2])]
        {
            let scales = vec![1.0; scales_shape.iter().product()];
            assert_eq!(
                scaled(shape, &scales, scales_shape, Some([2, 4])),
                None,
                "{shape:?} {scales_shape:?}"
            );
        }
    }
}
