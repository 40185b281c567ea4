//! Settings of image processors as published files have them, and those that are refused.

use super::*;
use serde_json::json;

fn read(config: Value) -> Result<Preprocessing> {
    Preprocessing::read(Path::new(FILE), &config, Processor::Clip)
}

#[test]
fn old_and_new_ways_to_write_the_same_are_the_same() {
    let old = json!({"size": 224, "crop_size": 224, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"});
    let new = json!({
        "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 3,
        "image_processor_type": "CLIPImageProcessorFast", "image_std": CLIP_DEVIATION, "rescale_factor": 1.0 / 255.0
    });
    let (old, new) = (read(old).unwrap(), read(new).unwrap());
    assert_eq!(old, new);
    assert_eq!(old.exact(), Some((224, 224)));
    let siglip = read(json!({"image_processor_type": "SiglipImageProcessor"})).unwrap();
    assert_eq!((siglip.crop, siglip.exact()), (None, Some((224, 224))));
    let bare = read(json!({"do_resize": false, "do_center_crop": false, "do_normalize": false})).unwrap();
    assert_eq!((bare.exact(), bare.scaling), (None, Scaling::new(1.0 / 255.0, [0.0; 3], [1.0; 3])));
}

#[test]
fn sides_stay_in_proportion_and_are_cut_down() {
    assert_eq!(Size::Shortest(224).of(640, 427), (335, 224));
    assert_eq!(Size::Shortest(224).of(427, 640), (224, 335));
    assert_eq!(Size::Shortest(7).of(usize::MAX, 1).1, 7);
    assert_eq!(Size::Exact { width: 3, height: 4 }.of(640, 427), (3, 4));
    // `get_image_size_for_max_num_patches` of transformers.
    let patches = |side, most, width, height| Size::Patches { side, most }.of(width, height);
    assert_eq!(patches(16, 256, 640, 427), (304, 208));
    assert_eq!(patches(16, 256, 427, 640), (208, 304));
    assert_eq!(patches(16, 256, 16, 16), (256, 256));
    assert_eq!(patches(16, 1024, 1920, 1080), (672, 384));
    assert_eq!(patches(14, 256, 7, 3000), (14, 3584));
    assert_eq!(patches(7, 20, 186, 120), (35, 28));
    assert_eq!(patches(16, 1, 5, 900), (16, 16));
    assert_eq!(patches(16, 256, 33, 4000), (32, 2048));
}

#[test]
fn what_cannot_be_done_is_refused() {
    for config in [
        json!({"image_processor_type": "SomethingElse"}),
        json!({"size": {"longest_edge": 5}}),
        json!({"size": {"shortest_edge": 0}}),
        json!({"size": {"height": 1_000_000, "width": 3}}),
        json!({"crop_size": {"height": 0, "width": 3}}),
        json!({"crop_size": {"shortest_edge": 3}}),
        json!({"resample": 17}),
        json!({"image_std": [0.0, 1.0, 1.0]}),
        json!({"image_mean": [0.5, 0.5]}),
        json!({"rescale_factor": 1e300}),
        json!({"do_pad": true}),
        json!({"size": "large"}),
        json!({"image_processor_type": "Siglip2ImageProcessor", "patch_size": 0}),
        json!({"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 0}),
        json!({"image_processor_type": "DINOv3ViTImageProcessor", "do_center_crop": true}),
        json!({"image_processor_type": "DINOv3ViTImageProcessor", "resample": 1}),
    ] {
        assert!(read(config.clone()).is_err(), "{config}");
    }
}
