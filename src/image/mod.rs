//! Images to pixel values.
