//! Images with one class each, from a CSV file with the columns `image`, `folder` (or `label`) and, if wanted, `split`.

use std::path::{Path, PathBuf};

use super::pairs::check_files;
use super::table::{Delimiter, Table, data_error, no_split};
use crate::Result;

/// All labelled images of a file, in every split.
#[derive(Debug, Clone)]
pub struct LabelledImages {
    path: PathBuf,
    rows: Vec<Labelled>,
    folders: Vec<String>,
    splits: Vec<String>,
}

#[derive(Debug, Clone)]
struct Labelled {
    image: String,
    class: usize,
    split: Option<String>,
}

impl LabelledImages {
    /// Reads `path`, a CSV file whose header names `image` and `folder` (or `label`), and maybe `split`. No image is opened.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if it cannot be read; [`Data`](crate::ErrorKind::Data) with the line if a column is missing or a value empty.
    pub fn from_csv(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut table = Table::open(path, Delimiter::Found)?;
        let (image, folder, split) =
            (table.need(&["image"])?, table.need(&["folder", "label"])?, table.find(&["split"]));
        let mut read = Vec::new();
        let mut splits: Vec<String> = Vec::new();
        for row in table.rows() {
            let row = row?;
            let split = split.map(|column| row.value(path, column, "split")).transpose()?.map(str::to_string);
            if let Some(name) = split.as_ref().filter(|name| !splits.contains(name)) {
                splits.push(name.clone());
            }
            let (image, folder) = (row.value(path, image, "image")?, row.value(path, folder, "label")?);
            read.push((image.to_string(), folder.to_string(), split));
        }
        if read.is_empty() {
            return Err(data_error(path, None, "has a header but no rows"));
        }
        let mut folders: Vec<String> = read.iter().map(|(_, folder, _)| folder.clone()).collect();
        folders.sort_unstable();
        folders.dedup();
        let class = |folder: &String| folders.binary_search(folder).unwrap_or_default();
        let rows = read.iter().map(|(image, folder, split)| (image.clone(), class(folder), split.clone()));
        let rows = rows.map(|(image, class, split)| Labelled { image, class, split }).collect();
        Ok(Self { path: path.to_path_buf(), rows, folders, splits })
    }

    /// The classes as the file spells them, sorted; a class index counts in this list.
    #[must_use]
    pub fn folders(&self) -> &[String] {
        &self.folders
    }

    /// The classes in words, in the order of [`LabelledImages::folders`]: underscores become spaces (`sea_horse` → `sea horse`),
    /// everything else stays.
    #[must_use]
    pub fn class_names(&self) -> Vec<String> {
        self.folders.iter().map(|folder| in_words(folder)).collect()
    }

    /// The names of the splits, in the order in which they appear; none if the file has no `split` column.
    #[must_use]
    pub fn split_names(&self) -> &[String] {
        &self.splits
    }

    /// The images of one split. Classes are numbered over all splits, so a split may lack some.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) that lists the splits present, if there is none of that name.
    pub fn split(&self, name: &str) -> Result<LabelledSplit> {
        if !self.splits.iter().any(|s| s == name) {
            return Err(no_split(&self.path, name, &self.splits));
        }
        Ok(self.collect(|row| row.split.as_deref() == Some(name)))
    }

    /// Everything, whatever its split.
    #[must_use]
    pub fn all(&self) -> LabelledSplit {
        self.collect(|_| true)
    }

    /// The folder that the images' paths start from: `images` if one is given and the first image lies under it, else the
    /// folder of the CSV file.
    #[must_use]
    pub fn image_folder(&self, images: Option<&Path>) -> PathBuf {
        let beside = self.path.parent().map(Path::to_path_buf).unwrap_or_default();
        let holds = |folder: &Path| self.rows.first().is_some_and(|row| folder.join(&row.image).is_file());
        match images {
            Some(folder) if holds(folder) || !holds(&beside) => folder.to_path_buf(),
            _ => beside,
        }
    }

    fn collect(&self, wanted: impl Fn(&Labelled) -> bool) -> LabelledSplit {
        let (images, classes) = self.rows.iter().filter(|r| wanted(r)).map(|r| (r.image.clone(), r.class)).unzip();
        LabelledSplit { images, classes }
    }
}

/// Images with the index of the class each belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledSplit {
    images: Vec<String>,
    classes: Vec<usize>,
}

impl LabelledSplit {
    /// The images' paths, relative to [`LabelledImages::image_folder`].
    #[must_use]
    pub fn images(&self) -> &[String] {
        &self.images
    }

    /// The class of each image, as an index into [`LabelledImages::folders`].
    #[must_use]
    pub fn classes(&self) -> &[usize] {
        &self.classes
    }

    /// Checks that every image is a file under `folder`, without opening any.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) that counts the missing ones and names the first few.
    pub fn check_images(&self, folder: impl AsRef<Path>) -> Result<()> {
        check_files(folder.as_ref(), &self.images)
    }
}

/// A class's folder in words.
pub(super) fn in_words(folder: &str) -> String {
    folder.replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("labels.csv");
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn classes_are_sorted_and_numbered_over_all_splits() {
        let folder = tempfile::tempdir().unwrap();
        let text = "image,folder,split\n2.jpg,sea_horse,test\n1.jpg,Faces,train\n3.jpg,airplane,test\n";
        let data = LabelledImages::from_csv(write(folder.path(), text)).unwrap();
        assert_eq!(data.folders(), ["Faces", "airplane", "sea_horse"]);
        assert_eq!(data.class_names(), ["Faces", "airplane", "sea horse"]);
        let test = data.split("test").unwrap();
        assert_eq!((test.images(), test.classes()), (&["2.jpg".to_string(), "3.jpg".to_string()][..], &[2, 1][..]));
        assert_eq!(data.all().images().len(), 3);
        assert!(data.split("val").unwrap_err().to_string().contains("test, train"));
    }

    #[test]
    fn the_label_column_may_be_called_label_but_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let data = LabelledImages::from_csv(write(folder.path(), "image,label\n1.jpg,cat\n")).unwrap();
        assert_eq!(data.folders(), ["cat"]);
        assert!(data.split("test").is_err());
        let error = LabelledImages::from_csv(write(folder.path(), "image,class\n1.jpg,cat\n")).unwrap_err().to_string();
        assert!(error.contains("'folder' or 'label'") && error.contains("image, class"), "{error}");
    }

    #[test]
    fn images_are_found_in_the_given_folder_or_beside_the_file() {
        let root = tempfile::tempdir().unwrap();
        let (beside, other) = (root.path().join("set"), root.path().join("other"));
        std::fs::create_dir_all(beside.join("images")).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        std::fs::write(beside.join("images/1.jpg"), b"").unwrap();
        let data = LabelledImages::from_csv(write(&beside, "image,folder\nimages/1.jpg,cat\n")).unwrap();
        assert_eq!(data.image_folder(None), beside);
        assert_eq!(data.image_folder(Some(&beside.join("images"))), beside);
        std::fs::create_dir_all(other.join("images")).unwrap();
        std::fs::write(other.join("images/1.jpg"), b"").unwrap();
        assert_eq!(data.image_folder(Some(&other)), other);
        data.all().check_images(&beside).unwrap();
    }
}
