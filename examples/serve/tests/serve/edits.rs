//! Pictures from pictures: forms with files, as browsers and OpenAI's clients send them, and those that are refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use candle_actors::testing::FakeLoader;
use candle_actors::{ImageSource, ModelSpec, PaintImage, Picture, TextToImage};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};
use serde_json::Value;
use serve::Server;

use crate::client::{Client, Response};
use crate::harness::{Running, engine, models, source};

const PROMPT: &str = "a green circle right of a red triangle";

/// A part of a form: its name, the name of its file if it is one, and its bytes.
type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);

fn text<'a>(name: &'a str, value: &'a str) -> Part<'a> {
    (name, None, value.as_bytes())
}

fn file<'a>(name: &'a str, bytes: &'a [u8]) -> Part<'a> {
    (name, Some("a.png"), bytes)
}

fn form(parts: &[Part<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file, bytes) in parts {
        let file = file.map_or(String::new(), |file| format!("; filename=\"{file}\""));
        body.extend(
            format!("--limit\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes(),
        );
        body.extend_from_slice(bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--limit--\r\n");
    body
}

async fn edit(server: &Running, parts: &[Part<'_>], headers: &[&str]) -> Response {
    let mut client = Client::new(server.client.address);
    client.headers.push("Content-Type: multipart/form-data; boundary=limit".to_owned());
    client.headers.extend(headers.iter().map(|line| (*line).to_owned()));
    client.send_bytes("POST", "/v1/images/edits", &form(parts)).await
}

/// A PNG file of so many pixels a side.
fn png(side: u32, kind: ExtendedColorType, pixel: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    let pixels: Vec<u8> = (0..side * side).flat_map(|index| pixel(index % side)).collect();
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(&pixels, side, side, kind).unwrap();
    file
}

/// A mask whose right half is transparent; a pixel in its left is nearly so.
fn right_half() -> Vec<u8> {
    png(64, ExtendedColorType::Rgba8, |column| match column {
        0 => vec![9, 9, 9, 1],
        1..32 => vec![0, 0, 0, 255],
        _ => vec![200, 10, 10, 0],
    })
}

fn pixels(picture: &Value) -> (usize, Vec<u8>) {
    let file = STANDARD.decode(picture["b64_json"].as_str().unwrap()).unwrap();
    let picture = image::load_from_memory(&file).unwrap().into_rgb8();
    (picture.width() as usize, picture.into_raw())
}

#[tokio::test]
async fn a_picture_is_painted_from_a_picture_and_with_a_mask_as_the_library_paints_it() {
    let painter = engine().text_to_image("painter", source("shapes-text-to-image")).start().await.unwrap();
    let library = painter.text_to_image("painter").unwrap();
    let server = Running::over(painter).await;
    let path = models().join("shapes/held_out/000.png");
    let (image, mask) = (std::fs::read(&path).unwrap(), right_half());
    let mut parts =
        vec![text("model", "painter"), text("prompt", PROMPT), text("steps", "4"), text("seed", "7")];
    parts.push(file("image", &image));
    let drawn = edit(&server, &parts, &[]).await.json().await;
    let request = PaintImage::from(PROMPT).with_image(ImageSource::Path(path)).with_steps(4).with_seed(7);
    let expected = library.paint(request.clone()).await.unwrap();
    assert_eq!(pixels(&drawn["data"][0]), (expected.width, expected.rgb.clone()));

    let mut weak = parts.clone();
    weak.extend([
        text("strength", "0.3"),
        text("n", "1"),
        text("size", "64x64"),
        text("response_format", "b64_json"),
    ]);
    weak.extend([text("output_compression", "100"), text("background", "auto"), text("user", "5")]);
    let drawn = edit(&server, &weak, &[]).await.json().await;
    let expected = library.paint(request.clone().with_strength(0.3)).await.unwrap();
    assert_eq!(pixels(&drawn["data"][0]).1, expected.rgb);

    parts.extend([file("mask", &mask), text("stream", "true"), text("partial_images", "2")]);
    let white = (0..64 * 64).flat_map(|index| if index % 64 < 32 { [0; 3] } else { [255; 3] });
    let masked = request.with_mask(ImageSource::Picture(Picture::new(64, 64, white.collect())));
    let expected = library.paint(masked).await.unwrap();
    let mut response = edit(&server, &parts, &[]).await;
    let mut told = Vec::new();
    let mut last = Value::Null;
    while let Some((name, data)) = response.event().await {
        last = serde_json::from_str(&data).unwrap();
        told.push((name, last["partial_image_index"].as_u64()));
    }
    let named = |name: &str, index| (format!("image_edit.{name}"), index);
    assert_eq!(
        told,
        [named("partial_image", Some(0)), named("partial_image", Some(1)), named("completed", None)]
    );
    assert_eq!((pixels(&last).1, &last["usage"]["total_tokens"]), (expected.rgb, &Value::from(0)));
    assert!(server.end().await.unwrap().is_clean());
}

#[tokio::test]
async fn a_form_that_is_wrong_is_refused_by_name() {
    let engine = engine().start().await.unwrap();
    let system = engine.system().clone();
    let painter = ModelSpec::new("painter", FakeLoader::<TextToImage>::default());
    system.client::<TextToImage>().unwrap().register(painter).unwrap();
    let server = Running::start(Server::new(engine).with_body_bytes(10_000), system).await;
    let image = png(64, ExtendedColorType::Rgb8, |_| vec![200, 100, 0]);
    let good = [text("model", "painter"), text("prompt", PROMPT)];
    let mask = right_half();
    let listed = [good[0], good[1], file("image[]", &image), file("mask", &mask)];
    assert_eq!(edit(&server, &listed, &["Origin: http://localhost"]).await.status, 200);

    let opaque = png(64, ExtendedColorType::Rgb8, |_| vec![0; 3]);
    let shown = ("image", Some("a.png"), image.as_slice());
    let many: Vec<String> = (0..70).map(|number| format!("field {number}")).collect();
    let refused: Vec<(&str, Vec<Part<'_>>)> = vec![
        ("image", vec![]),
        ("image", vec![shown, shown]),
        ("image", vec![text("image", "a.png")]),
        ("mask", vec![shown, file("mask", &opaque)]),
        ("mask", vec![shown, file("mask", b"no picture")]),
        ("mask", vec![shown, file("mask", &image[..40])]),
        ("markup", vec![shown, file("markup", &image)]),
        ("n", vec![shown, text("n", "many")]),
        ("n", vec![shown, text("n", "11")]),
        ("stream", vec![shown, text("stream", "yes")]),
        ("partial_images", vec![shown, text("partial_images", "1")]),
        ("input_fidelity", vec![shown, text("input_fidelity", "high")]),
        ("output_format", vec![shown, text("output_format", "webp")]),
        ("prompt", vec![shown, text("prompt", "another")]),
        ("style", vec![shown, text("style", "vivid")]),
        ("seed", vec![shown, ("seed", None, &[0xff])]),
        ("field 62", many.iter().map(|name| text(name, "1")).chain([shown]).collect()),
    ];
    for (name, more) in refused {
        let parts: Vec<Part<'_>> = good.iter().chain(&more).copied().collect();
        let response = edit(&server, &parts, &[]).await;
        assert_eq!(response.status, 400, "{name}");
        let error = response.json().await;
        assert_eq!(error["error"]["param"], name, "{error}");
    }
    for more in [[shown, text("strength", "2")], [file("image", b"no picture"), text("n", "1")]] {
        let parts: Vec<Part<'_>> = good.iter().chain(&more).copied().collect();
        assert_eq!(edit(&server, &parts, &[]).await.status, 400);
    }

    let whole = [good[0], good[1], shown];
    let code = async |response: Response| {
        (response.status, response.json().await["error"]["code"].as_str().unwrap().to_owned())
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    for origin in ["Origin: http://example.org", "Origin: null", "Origin: localhost"] {
        assert_eq!(code(edit(&server, &whole, &[origin]).await).await, is(403, "cross_origin"));
    }
    let long = [good[0], good[1], shown, file("mask", &[0; 10_000])];
    assert_eq!(code(edit(&server, &long, &[]).await).await, is(413, "body_too_large"));
    let mut client = Client::new(server.client.address);
    let json = client.send("POST", "/v1/images/edits", "{}").await;
    assert_eq!(code(json).await, is(415, "unsupported_media_type"));
    let cut = form(&whole);
    client.headers.push("Content-Type: multipart/form-data; boundary=limit".to_owned());
    let response = client.send_bytes("POST", "/v1/images/edits", &cut[..cut.len() - 30]).await;
    assert_eq!(code(response).await, is(400, "invalid_body"));
    client.headers = vec!["Content-Type: multipart/form-data".to_owned()];
    let response = client.send_bytes("POST", "/v1/images/edits", &cut).await;
    assert_eq!(code(response).await, is(400, "invalid_body"));
    assert!(server.end().await.unwrap().is_clean());
}
