//! Images with captions, from a CSV file with the columns `image`, `caption` and, if wanted, `split`.
//!
//! One line is one caption; an image with several captions has several lines, wherever they stand. Images keep the order in
//! which they first appear, captions the order of their lines.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::table::{Table, data_error, no_split};
use crate::Result;

/// How many missing images an error names.
const NAMED_MISSING: usize = 5;

/// All images and captions of a file, in every split.
#[derive(Debug, Clone)]
pub struct PairDataset {
    path: PathBuf,
    images: Vec<Entry>,
    splits: Vec<String>,
}

#[derive(Debug, Clone)]
struct Entry {
    image: String,
    captions: Vec<String>,
    /// Index into `splits`; `None` where the file has no such column.
    split: Option<usize>,
}

impl PairDataset {
    /// Reads `path`, a CSV file whose header names `image` and `caption`, and maybe `split`. No image is opened.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if it cannot be read; [`Data`](crate::ErrorKind::Data) with the line if a column is missing, an
    /// image or caption is empty, or an image stands in two splits (training and testing on it would not be noticed otherwise).
    pub fn from_csv(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut table = Table::open(path)?;
        let (image, caption, split) = (table.need(&["image"])?, table.need(&["caption"])?, table.find(&["split"]));
        let mut dataset = Self { path: path.to_path_buf(), images: Vec::new(), splits: Vec::new() };
        let mut place = HashMap::new();
        for row in table.rows() {
            let row = row?;
            let name = row.value(path, image, "image")?;
            let caption = row.value(path, caption, "caption")?;
            let split = match split {
                Some(column) => Some(dataset.split_index(row.value(path, column, "split")?)),
                None => None,
            };
            let index = *place.entry(name.to_string()).or_insert(dataset.images.len());
            if index == dataset.images.len() {
                dataset.images.push(Entry { image: name.to_string(), captions: Vec::new(), split });
            }
            let entry = &mut dataset.images[index];
            if entry.split != split {
                return Err(data_error(
                    path,
                    Some(row.line()),
                    format!("image '{name}' already stands in another split"),
                ));
            }
            entry.captions.push(caption.to_string());
        }
        if dataset.images.is_empty() {
            return Err(data_error(path, None, "has a header but no rows"));
        }
        Ok(dataset)
    }

    /// The names of the splits, in the order in which they appear; none if the file has no `split` column.
    #[must_use]
    pub fn split_names(&self) -> &[String] {
        &self.splits
    }

    /// The images and captions of one split.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) that lists the splits present, if there is none of that name.
    pub fn split(&self, name: &str) -> Result<Split> {
        let index = self.splits.iter().position(|s| s == name);
        let index = index.ok_or_else(|| no_split(&self.path, name, &self.splits))?;
        Ok(self.collect(|entry| entry.split == Some(index)))
    }

    /// Everything, whatever its split.
    #[must_use]
    pub fn all(&self) -> Split {
        self.collect(|_| true)
    }

    fn collect(&self, wanted: impl Fn(&Entry) -> bool) -> Split {
        let pairs = self.images.iter().filter(|entry| wanted(entry)).map(|e| (e.image.clone(), e.captions.clone()));
        let (images, captions) = pairs.unzip();
        Split { images, captions }
    }

    fn split_index(&mut self, name: &str) -> usize {
        self.splits.iter().position(|s| s == name).unwrap_or_else(|| {
            self.splits.push(name.to_string());
            self.splits.len() - 1
        })
    }
}

/// Images with at least one caption each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    images: Vec<String>,
    captions: Vec<Vec<String>>,
}

impl Split {
    /// A split from lists of the program's own: `captions[i]` belong to `images[i]`.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if the lists differ in length or an image has no caption.
    pub fn new(images: Vec<String>, captions: Vec<Vec<String>>) -> Result<Self> {
        if images.len() != captions.len() {
            let message =
                format!("{} lists of captions for {} images; give one list an image", captions.len(), images.len());
            return Err(crate::Error::argument("captions", message));
        }
        if let Some(index) = captions.iter().position(Vec::is_empty) {
            return Err(crate::Error::argument("captions", format!("image '{}' has no caption", images[index])));
        }
        Ok(Self { images, captions })
    }

    /// The images' paths, relative to the folder of images.
    #[must_use]
    pub fn images(&self) -> &[String] {
        &self.images
    }

    /// The captions of each image.
    #[must_use]
    pub fn captions(&self) -> &[Vec<String>] {
        &self.captions
    }

    /// How many images there are.
    #[must_use]
    pub fn image_count(&self) -> usize {
        self.images.len()
    }

    /// How many captions all images have together.
    #[must_use]
    pub fn caption_count(&self) -> usize {
        self.captions.iter().map(Vec::len).sum()
    }

    /// All captions in the order of their images, and for each the index of the image it belongs to.
    #[must_use]
    pub fn flat_captions(&self) -> (Vec<&str>, Vec<usize>) {
        let owned = self.captions.iter().enumerate();
        owned.flat_map(|(index, captions)| captions.iter().map(move |c| (c.as_str(), index))).unzip()
    }

    /// Checks that every image is a file under `folder`, without opening any.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) that counts the missing ones and names the first few.
    pub fn check_images(&self, folder: impl AsRef<Path>) -> Result<()> {
        check_files(folder.as_ref(), &self.images)
    }
}

/// Checks that all of `images` are files under `folder`.
pub(super) fn check_files(folder: &Path, images: &[String]) -> Result<()> {
    // The folder of a file named without one is empty, and means the one the program is in.
    if !folder.as_os_str().is_empty() && !folder.is_dir() {
        return Err(crate::Error::file(folder, "is no folder; give the folder that holds the images"));
    }
    let missing: Vec<&str> = images.iter().filter(|i| !folder.join(i).is_file()).map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let named = missing[..missing.len().min(NAMED_MISSING)].join(", ");
    let more = if missing.len() > NAMED_MISSING { ", …" } else { "" };
    Err(crate::Error::file(
        folder,
        format!("{} of {} images are not there: {named}{more}", missing.len(), images.len()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, ErrorKind};

    fn read(text: &str) -> Result<PairDataset> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.csv");
        std::fs::write(&path, text).unwrap();
        PairDataset::from_csv(path)
    }

    fn data_line(error: &Error) -> Option<u64> {
        match error.kind() {
            ErrorKind::Data { line, .. } => *line,
            other => panic!("not a data error: {other}"),
        }
    }

    #[test]
    fn captions_are_grouped_by_image_in_order_of_first_appearance() {
        let data =
            read("split,caption,image\ntrain,one,b.jpg\ntest,\"two, quoted\",a.jpg\ntrain,three,b.jpg\n").unwrap();
        let all = data.all();
        assert_eq!(all.images(), ["b.jpg", "a.jpg"]);
        assert_eq!(all.captions(), [vec!["one", "three"], vec!["two, quoted"]]);
        assert_eq!(all.flat_captions(), (vec!["one", "three", "two, quoted"], vec![0, 0, 1]));
        assert_eq!((all.image_count(), all.caption_count()), (2, 3));
        assert_eq!(data.split_names(), ["train", "test"]);
        assert_eq!(data.split("test").unwrap().images(), ["a.jpg"]);
    }

    #[test]
    fn a_missing_column_is_named_with_the_columns_found() {
        let error = read("image,title\na.jpg,x\n").unwrap_err();
        assert_eq!(data_line(&error), Some(1));
        let text = error.to_string();
        assert!(text.contains("'caption'") && text.contains("image, title") && text.contains("captions.csv"), "{text}");
    }

    #[test]
    fn an_unknown_split_lists_those_present() {
        let text =
            read("image,caption,split\na.jpg,x,train\nb.jpg,x,val\n").unwrap().split("test").unwrap_err().to_string();
        assert!(text.contains("'test'") && text.contains("train, val"), "{text}");
        let without = read("image,caption\na.jpg,x\n").unwrap();
        assert!(without.split("train").unwrap_err().to_string().contains("no column 'split'"));
        assert_eq!(without.all().image_count(), 1);
    }

    #[test]
    fn bad_rows_are_reported_with_their_line() {
        assert_eq!(data_line(&read("image,caption\na.jpg,x\n,y\n").unwrap_err()), Some(3));
        assert_eq!(data_line(&read("image,caption\na.jpg,\n").unwrap_err()), Some(2));
        assert_eq!(data_line(&read("image,caption\na.jpg,x,too many\n").unwrap_err()), Some(2));
        assert_eq!(data_line(&read("image,caption,split\na.jpg,x,train\na.jpg,y,test\n").unwrap_err()), Some(3));
        assert_eq!(data_line(&read("image,caption\n").unwrap_err()), None);
    }

    #[test]
    fn what_is_no_csv_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(PairDataset::from_csv(folder.path()).unwrap_err().kind(), ErrorKind::File { .. }));
        assert!(matches!(
            PairDataset::from_csv(folder.path().join("no.csv")).unwrap_err().kind(),
            ErrorKind::File { .. }
        ));
        let path = folder.path().join("binary.csv");
        std::fs::write(&path, [0xff, 0xd8, 0xff, 0x00, b'\n', 0xfe]).unwrap();
        assert!(matches!(PairDataset::from_csv(path).unwrap_err().kind(), ErrorKind::Data { .. }));
    }

    #[test]
    fn missing_images_are_counted_and_the_first_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("0.jpg"), b"").unwrap();
        let names: Vec<String> = (0..8).map(|i| format!("{i}.jpg")).collect();
        let split = Split::new(names.clone(), vec![vec![String::from("x")]; 8]).unwrap();
        let text = split.check_images(folder.path()).unwrap_err().to_string();
        assert!(text.contains("7 of 8") && text.contains("1.jpg") && !text.contains("6.jpg"), "{text}");
        let present = Split::new(names[..1].to_vec(), vec![vec![String::from("x")]]).unwrap();
        present.check_images(folder.path()).unwrap();
        assert!(present.check_images(folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn the_folder_of_a_bare_file_name_is_the_one_the_program_is_in() {
        let folder = Path::new("captions.csv").parent().unwrap();
        Split::new(vec![String::from("Cargo.toml")], vec![vec![String::from("x")]])
            .unwrap()
            .check_images(folder)
            .unwrap();
    }

    #[test]
    fn lists_that_do_not_fit_together_make_no_split() {
        assert!(Split::new(vec![String::from("a")], vec![]).is_err());
        assert!(Split::new(vec![String::from("a")], vec![vec![]]).is_err());
    }
}
