//! [`Split::balanced`]: rare classes seen more often.

use std::collections::HashMap;

use super::pairs::Split;

/// How often an image is repeated at most.
const MOST: usize = 4;

impl Split {
    /// The same images, those of rare classes up to four times, so that an epoch has about `least` of each class.
    ///
    /// A class are images with the very same captions, as a folder per class makes them; images whose captions no other image has
    /// stand for themselves and are never repeated. An image of a class of n comes `least` / n times, rounded, between once and four times;
    /// the repetitions have random views and captions of their own. Images of large classes are not left out. This is the repetition by frequency
    /// of Gupta et al. 2019 (arXiv 1908.03195, section 4), with the number of images in place of their share.
    ///
    /// ```
    /// # fn main() -> diptych::Result<()> {
    /// let images = ["1.jpg", "2.jpg", "3.jpg"].map(String::from).to_vec();
    /// let captions = ["a cat", "a cat", "two dogs"].map(|caption| vec![caption.to_string()]).to_vec();
    /// let split = diptych::data::Split::new(images, captions)?.balanced(4);
    /// assert_eq!(split.images(), ["1.jpg", "1.jpg", "2.jpg", "2.jpg", "3.jpg"]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn balanced(&self, least: usize) -> Self {
        let mut members: HashMap<&[String], usize> = HashMap::new();
        for captions in self.captions() {
            *members.entry(captions).or_default() += 1;
        }
        let times = |captions: &Vec<String>| match members[captions.as_slice()] {
            1 => 1,
            count => ((least + count / 2) / count).clamp(1, MOST),
        };
        let captions = self.captions().iter().enumerate();
        self.select(captions.flat_map(|(index, captions)| std::iter::repeat_n(index, times(captions))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_rare_classes_come_up_to_four_times_and_all_others_once() {
        let classes = [("rare", 2), ("middle", 12), ("large", 40), ("alone", 1)];
        let names = classes.iter().flat_map(|&(class, count)| (0..count).map(move |i| (class, format!("{class}{i}"))));
        let (captions, images): (Vec<_>, Vec<_>) = names.map(|(class, name)| (vec![class.to_string()], name)).unzip();
        let split = Split::new(images, captions).unwrap().balanced(20);
        let count = |class: &str| split.captions().iter().filter(|captions| captions[0] == class).count();
        assert_eq!(classes.map(|(class, _)| count(class)), [8, 24, 40, 1]);
        let mut different = split.images().to_vec();
        different.dedup();
        assert_eq!(different.len(), 55);
        assert_eq!(split.balanced(0), split);
    }
}
