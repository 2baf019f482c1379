//! Images with captions: all of a data set, and one of its splits.
//!
//! Images keep the order in which they first appear, captions the order of their rows.

use std::path::{Path, PathBuf};

use super::skipped::Skipped;
use super::table::no_split;
use crate::Result;
use crate::image::ImageSource;

/// How many missing images an error names.
const NAMED_MISSING: usize = 5;
/// What to do where images are not there.
const FOLDER_REMEDY: &str = "give the folder that holds the images";

/// All images and captions of a data set, in every split; [`PairDataset::open`] reads one.
#[derive(Debug, Clone)]
pub struct PairDataset {
    pub(super) path: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) images: Vec<Entry>,
    pub(super) splits: Vec<String>,
    pub(super) skipped: Vec<Skipped>,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) image: String,
    /// Where the image is; `None` for a file of its name.
    pub(super) source: Option<ImageSource>,
    pub(super) captions: Vec<String>,
    /// Index into the data set's splits; `None` where there are none.
    pub(super) split: Option<usize>,
}

impl PairDataset {
    /// The names of the splits, in the order in which they appear; none if the data set has none.
    #[must_use]
    pub fn split_names(&self) -> &[String] {
        &self.splits
    }

    /// The samples that were left out when the data set was read.
    #[must_use]
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
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
        let mut split = Split { folder: self.folder.clone(), skipped: self.skipped.clone(), ..Split::default() };
        for entry in self.images.iter().filter(|entry| wanted(entry)) {
            split.images.push(entry.image.clone());
            split.sources.push(entry.source.clone());
            split.captions.push(entry.captions.clone());
        }
        split
    }
}

/// Images with at least one caption each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Split {
    /// What the images' paths start from where nothing else is said.
    folder: PathBuf,
    images: Vec<String>,
    /// Where each image is; `None` for a file of its name.
    sources: Vec<Option<ImageSource>>,
    captions: Vec<Vec<String>>,
    skipped: Vec<Skipped>,
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
        Ok(Self { sources: vec![None; images.len()], images, captions, ..Self::default() })
    }

    /// The images' names: paths relative to the folder of images, or the shard and the member.
    #[must_use]
    pub fn images(&self) -> &[String] {
        &self.images
    }

    /// Some of the images, by their indices; those beyond the last image are left out.
    #[must_use]
    pub fn select(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let mut part = Self { folder: self.folder.clone(), skipped: self.skipped.clone(), ..Self::default() };
        for index in indices.into_iter().filter(|&index| index < self.images.len()) {
            part.images.push(self.images[index].clone());
            part.sources.push(self.sources[index].clone());
            part.captions.push(self.captions[index].clone());
        }
        part
    }

    /// The folder that the images' paths start from: `images` if one is given; else the folder of the file that was read, or
    /// `images` in it if the first image lies there. Images within shards need none.
    #[must_use]
    pub fn image_folder(&self, images: Option<&Path>) -> PathBuf {
        if let Some(folder) = images {
            return folder.to_path_buf();
        }
        let beside = self.folder.join("images");
        let holds = |folder: &Path| self.images.first().is_some_and(|image| folder.join(image).is_file());
        if !holds(&self.folder) && holds(&beside) { beside } else { self.folder.clone() }
    }

    /// Where the images are; those that are files of their own lie under `folder`.
    #[must_use]
    pub fn sources(&self, folder: impl AsRef<Path>) -> Vec<ImageSource> {
        let folder = folder.as_ref();
        let file = |image: &String| ImageSource::File(folder.join(image));
        let all = self.images.iter().zip(&self.sources);
        all.map(|(image, source)| source.clone().unwrap_or_else(|| file(image))).collect()
    }

    /// The samples that were left out when the data set was read, whatever their split.
    #[must_use]
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
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

    /// Checks that every image that is no part of a shard is a file under `folder`, without opening any.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) that counts the missing ones and names the first few.
    pub fn check_images(&self, folder: impl AsRef<Path>) -> Result<()> {
        let files: Vec<&String> = self.files().map(|(_, image)| image).collect();
        if files.is_empty() { Ok(()) } else { check_files(folder.as_ref(), &files) }
    }

    /// The images that are no part of a shard and no file under `folder`, by their indices.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if there is no such folder, or none of these images is in it.
    pub(crate) fn missing_images(&self, folder: &Path) -> Result<Vec<usize>> {
        let missing = self.files().filter(|(_, image)| !folder.join(image).is_file()).map(|(index, _)| index);
        let missing: Vec<usize> = missing.collect();
        if missing.len() == self.files().count() {
            self.check_images(folder)?;
        }
        Ok(missing)
    }

    /// The images that are files of their own, with their indices.
    fn files(&self) -> impl Iterator<Item = (usize, &String)> {
        let all = self.images.iter().zip(&self.sources).enumerate();
        all.filter(|(_, (_, source))| source.is_none()).map(|(index, (image, _))| (index, image))
    }

    /// A hash of the images' names and their captions, the same wherever the data lie.
    pub(crate) fn fingerprint(&self) -> String {
        let name = |image: &str, source: &Option<ImageSource>| match source {
            // Within a shard, whose path may be another on another machine.
            Some(_) => image.rsplit('/').next().unwrap_or_default().to_string(),
            None => image.to_string(),
        };
        let names = self.images.iter().zip(&self.sources).map(|(image, source)| name(image, source));
        let all = names.zip(&self.captions).map(|(name, captions)| format!("{name}\n{}\n\n", captions.join("\n")));
        format!("{:016x}", crate::random::hash(all.flat_map(String::into_bytes)))
    }
}

/// Checks that all of `images` are files under `folder`.
pub(super) fn check_files<S: AsRef<str>>(folder: &Path, images: &[S]) -> Result<()> {
    // The folder of a file named without one is empty, and means the one the program is in.
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !here.is_dir() {
        return Err(crate::Error::file(folder, format!("is no folder; {FOLDER_REMEDY}")));
    }
    let missing: Vec<&str> = images.iter().map(AsRef::as_ref).filter(|i| !folder.join(i).is_file()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let named = missing[..missing.len().min(NAMED_MISSING)].join(", ");
    let more = if missing.len() > NAMED_MISSING { ", …" } else { "" };
    let (count, all) = (missing.len(), images.len());
    let shown = std::path::absolute(here).unwrap_or_else(|_| here.to_path_buf());
    Err(crate::Error::file(shown, format!("{count} of {all} images are not there: {named}{more}; {FOLDER_REMEDY}")))
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
        let error = read("image,words\na.jpg,x\n").unwrap_err();
        assert_eq!(data_line(&error), Some(1));
        let text = error.to_string();
        assert!(text.contains("'caption'") && text.contains("image, words") && text.contains("captions.csv"), "{text}");
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
        // Whatever ends a line, with blank ones between, and with none behind the last.
        assert_eq!(data_line(&read("image,caption\r\na.jpg,x\r\n,y\r\n").unwrap_err()), Some(3));
        assert_eq!(data_line(&read("image,caption\r\n\r\na.jpg,\"x\"\r\n\r\n,y").unwrap_err()), Some(5));
        assert_eq!(data_line(&read("image,caption\n\na.jpg,x\n\n,y").unwrap_err()), Some(5));
        assert_eq!(data_line(&read("image,caption\r\na.jpg,\"x\r\nb.jpg,y\r\n").unwrap_err()), Some(2));
        let read = |text| read(text).unwrap().all().captions().to_vec();
        assert_eq!(read("image,caption\r\na.jpg,\"x, y\"\r\n\r\nb.jpg,z \r\n"), [["x, y"], ["z"]]);
        assert_eq!(read("image,caption\ra.jpg,x\rb.jpg,y\r"), [["x"], ["y"]]);
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
        assert_eq!(split.missing_images(folder.path()).unwrap(), [1, 2, 3, 4, 5, 6, 7]);
        let none = split.select([1, 2]);
        assert!(none.missing_images(folder.path()).unwrap_err().to_string().contains("2 of 2 images"));
        let here = none.check_images("").unwrap_err().to_string();
        assert!(here.starts_with(&std::env::current_dir().unwrap().display().to_string()), "{here}");
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
    fn a_selection_keeps_what_belongs_to_its_images() {
        let all = read("image,caption\na.jpg,x\nb.jpg,y\nb.jpg,z\nc.jpg,\n");
        assert!(all.is_err(), "from_csv takes no bad row");
        let all = read("image,caption\na.jpg,x\nb.jpg,y\nb.jpg,z\n").unwrap().all();
        let part = all.select([1, 7, 0]);
        assert_eq!(part.images(), ["b.jpg", "a.jpg"]);
        assert_eq!(part.captions(), [vec!["y", "z"], vec!["x"]]);
        assert_eq!(part.image_folder(None), all.image_folder(None));
        assert_eq!(part.image_folder(Some(Path::new("p"))), Path::new("p"));
    }

    #[test]
    fn lists_that_do_not_fit_together_make_no_split() {
        assert!(Split::new(vec![String::from("a")], vec![]).is_err());
        assert!(Split::new(vec![String::from("a")], vec![vec![]]).is_err());
    }
}
