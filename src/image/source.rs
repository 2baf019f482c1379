//! Where an image's bytes are: in a file of their own, or among others in a larger one.
//!
//! A source is small and opens nothing until its image is decoded, so a data set of millions of images is a list of sources.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file that holds many images, each found by its index: a tar shard, a column of a Parquet file, or a store of the program's own.
pub trait ImageStore: fmt::Debug + Send + Sync {
    /// What errors call the image at `index`.
    fn name(&self, index: usize) -> String;

    /// The contents of the image's file, read anew at every call and from any number of threads at once.
    ///
    /// # Errors
    /// A sentence that says what is wrong, also if there are more than `most` bytes.
    fn read(&self, index: usize, most: u64) -> std::result::Result<Vec<u8>, String>;
}

/// Where one image's bytes are.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// In a file of their own.
    File(PathBuf),
    /// At an index of a store.
    Stored(Arc<dyn ImageStore>, usize),
}

impl ImageSource {
    /// The same source; a file's relative path starts from `folder`.
    #[must_use]
    pub fn under(&self, folder: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(folder.join(path)),
            Self::Stored(..) => self.clone(),
        }
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stored(store, index) => f.write_str(&store.name(*index)),
        }
    }
}

impl PartialEq for ImageSource {
    /// The same path, or the same place of the same store in memory.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(a), Self::File(b)) => a == b,
            (Self::Stored(a, i), Self::Stored(b, j)) => i == j && Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Eq for ImageSource {}

impl Hash for ImageSource {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::File(path) => path.hash(state),
            Self::Stored(store, index) => (Arc::as_ptr(store).cast::<()>(), index).hash(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::image::{ImageProcessor, ImageProcessorConfig};

    #[derive(Debug)]
    struct Two(Vec<u8>);

    impl ImageStore for Two {
        fn name(&self, index: usize) -> String {
            format!("two/{index}")
        }

        fn read(&self, index: usize, _most: u64) -> std::result::Result<Vec<u8>, String> {
            if index == 0 { Ok(self.0.clone()) } else { Err("there is no such image".to_owned()) }
        }
    }

    #[test]
    fn sources_are_equal_where_they_name_the_same_bytes() {
        let (a, b): (Arc<dyn ImageStore>, Arc<dyn ImageStore>) = (Arc::new(Two(vec![])), Arc::new(Two(vec![])));
        let stored = |store: &Arc<dyn ImageStore>, index| ImageSource::Stored(store.clone(), index);
        let all = [stored(&a, 0), stored(&a, 0), stored(&a, 1), stored(&b, 0), ImageSource::File("x".into())];
        assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), 4);
        assert_eq!(ImageSource::File("x".into()).under(Path::new("y")), ImageSource::File("y/x".into()));
        assert_eq!(stored(&a, 1).under(Path::new("y")).to_string(), "two/1");
    }

    #[test]
    fn a_store_is_read_when_its_image_is_decoded_and_errors_name_it() {
        let mut png = std::io::Cursor::new(Vec::new());
        let image = ::image::RgbImage::from_pixel(5, 4, ::image::Rgb([1, 2, 3]));
        image.write_to(&mut png, ::image::ImageFormat::Png).unwrap();
        let store: Arc<dyn ImageStore> = Arc::new(Two(png.into_inner()));
        let processor = ImageProcessor::new(ImageProcessorConfig::clip()).unwrap();
        let found = processor.preprocess(&ImageSource::Stored(store.clone(), 0)).unwrap();
        assert_eq!(found, processor.preprocess(image).unwrap());
        let error = processor.preprocess(&ImageSource::Stored(store, 1)).unwrap_err().to_string();
        assert!(error.contains("two/1") && error.contains("no such image"), "{error}");
        let broken = ImageSource::Stored(Arc::new(Two(vec![1, 2, 3])), 0);
        assert!(processor.preprocess(&broken).unwrap_err().to_string().contains("two/0"));
    }
}
