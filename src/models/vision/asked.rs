//! A conversation as a family is asked to put it into tokens: its words, the places of its images among them, and the
//! sides of these. The pixels are left to the request.

use model_actors::{ContentPart, Role, VisionMessage};

use crate::error::{Error, Result};

/// A conversation without its pixels.
pub(super) struct Asked<'a> {
    pub(super) messages: Vec<AskedMessage<'a>>,
    /// Width and height of each image, in the order of their places.
    pub(super) sides: Vec<(usize, usize)>,
}

/// A message: the texts among its parts, and nothing in the places of images.
pub(super) struct AskedMessage<'a> {
    pub(super) role: Role,
    pub(super) parts: Vec<Option<&'a str>>,
}

impl<'a> Asked<'a> {
    pub(super) fn of(messages: &'a [VisionMessage], sides: Vec<(usize, usize)>) -> Result<Self> {
        let part = |part: &'a ContentPart| match part {
            ContentPart::Text(text) => Ok(Some(text.as_str())),
            ContentPart::Image(_) => Ok(None),
            _ => Err(Error::InvalidInput("a part is neither text nor image".to_owned())),
        };
        let messages = messages.iter().map(|message| {
            let parts = message.content.iter().map(part).collect::<Result<_>>()?;
            Ok(AskedMessage { role: message.role, parts })
        });
        Ok(Self { messages: messages.collect::<Result<_>>()?, sides })
    }

    /// The sides of the one image and the text with it, for a family that takes nothing else.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for several messages, images or texts.
    pub(super) fn one(&self, family: &str) -> Result<((usize, usize), &'a str)> {
        let texts = |message: &AskedMessage<'a>| message.parts.iter().copied().flatten().collect::<Vec<_>>();
        match (self.sides.as_slice(), self.messages.as_slice()) {
            (&[sides], [message]) if message.role == Role::User => match texts(message).as_slice() {
                [] => Ok((sides, "")),
                [text] => Ok((sides, text)),
                several => Err(refused(family, format!("{} texts", several.len()))),
            },
            (&[_], [_]) => Err(refused(family, "a message that is not the user's".to_owned())),
            (&[_], several) => Err(refused(family, format!("{} messages", several.len()))),
            (images, _) => Err(refused(family, format!("{} images", images.len()))),
        }
    }
}

fn refused(family: &str, found: String) -> Error {
    let reason =
        format!("the request has {found}; {family} takes one message of the user, of one image and one text");
    Error::InvalidInput(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model_actors::{ImageSource, Picture};

    #[test]
    fn a_family_of_one_image_takes_one_with_one_text_and_names_what_is_more() {
        let image = || ContentPart::from(ImageSource::Picture(Picture::new(1, 1, vec![0; 3])));
        let one = |messages: &[VisionMessage], images: usize| {
            let asked = Asked::of(messages, vec![(2, 3); images]).unwrap();
            asked.one("BLIP").map(|(sides, text)| (sides, text.to_owned())).map_err(|error| error.to_string())
        };
        let user = |parts: Vec<ContentPart>| VisionMessage::user(parts);
        assert_eq!(one(&[user(vec![image()])], 1), Ok(((2, 3), String::new())));
        assert_eq!(one(&[user(vec![image(), "a".into()])], 1), Ok(((2, 3), "a".to_owned())));
        for (messages, images, named) in [
            (vec![user(vec![image(), image()])], 2, "2 images"),
            (vec![user(vec!["a".into()])], 0, "0 images"),
            (vec![user(vec![image(), "a".into(), "b".into()])], 1, "2 texts"),
            (vec![VisionMessage::system("a"), user(vec![image()])], 1, "2 messages"),
            (vec![VisionMessage::new(Role::Assistant, [image()])], 1, "not the user's"),
        ] {
            let error = one(&messages, images).unwrap_err();
            assert!(error.contains(named) && error.contains("BLIP"), "{error}");
        }
    }
}
