//! A teacher beside the trained model.

use std::path::PathBuf;

use diptych::ClipModel;
use diptych::candle::{Device, Tensor};
use diptych::data::PairDataset;
use diptych::loss::{DistillLoss, Loss, Pairs, Teacher};
use diptych::train::{Half, Progress, TeacherConfig, TeacherView, TrainConfig, TrainData, Trainer};

use crate::common::Golden;
use crate::{COUNT, Setting, config, distance, golden, student, values};

/// Another architecture, image size and tokenizer than the student's.
fn teacher() -> ClipModel {
    golden("clip").with_trainable(|_| false).unwrap()
}

fn distilling(epochs: usize) -> TrainConfig {
    TrainConfig { loss: Loss::Distill(DistillLoss::new(None)), ..config(epochs) }
}

/// The divergence between two models on all pairs of the setting.
fn divergence(student: &ClipModel, teacher: &ClipModel, setting: &Setting) -> f64 {
    let files: Vec<PathBuf> = setting.split.images().iter().map(|image| setting.path().join(image)).collect();
    let (texts, _) = setting.split.flat_captions();
    let embed = |model: &ClipModel| {
        let images = model.embed_images(files.clone()).unwrap().tensor().unwrap();
        (images, model.embed_texts(&texts).unwrap().tensor().unwrap())
    };
    let ((image_embeds, text_embeds), (images, captions)) = (embed(teacher), embed(student));
    let teacher = Teacher { image_embeds, text_embeds, logit_scale: teacher.logit_scale().unwrap(), patches: None };
    let scale = Tensor::new(student.logit_scale().unwrap() as f32, &Device::Cpu).unwrap();
    let pairs = Pairs { teacher: Some(&teacher), ..Pairs::new(&images, &captions, &scale) };
    f64::from(DistillLoss::new(None).of(&pairs).unwrap().to_scalar::<f32>().unwrap())
}

#[test]
fn a_student_comes_to_see_the_pairs_as_its_teacher_does() {
    let setting = Setting::new();
    let (model, teacher) = (student(), teacher());
    let before = divergence(&model, &teacher, &setting);
    let kept = values(&teacher);
    let recipe = TrainConfig { lr: 1e-2, tower_lr: 5e-3, batch_size: COUNT, ..distilling(60) };
    let trainer = Trainer::new(&model, recipe).unwrap().with_teacher(&teacher, TeacherConfig::default());
    let report = trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap();
    let after = divergence(&model, &teacher, &setting);
    assert!(after < 0.5 * before, "{before} to {after}");
    // The run's own loss is the divergence of the last step's weights: the teacher was asked about the right pairs.
    assert!((report.loss / after - 1.0).abs() < 0.5, "{} and {after}", report.loss);
    assert!(values(&teacher) == kept, "the teacher changed");
}

#[test]
fn the_first_loss_is_the_divergence_from_the_teacher() {
    let setting = Setting::new();
    let (model, teacher) = (student(), teacher());
    let expected = divergence(&model, &teacher, &setting);
    for micro_batch in [None, Some(3)] {
        let recipe = TrainConfig { batch_size: COUNT, micro_batch, ..distilling(1) };
        let model = student();
        let trainer = Trainer::new(&model, recipe).unwrap().with_teacher(&teacher, TeacherConfig::default());
        let loss = trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap().loss;
        assert!((loss / expected - 1.0).abs() < 1e-4, "{loss} and {expected}");
    }
}

#[test]
fn a_loss_and_its_teacher_come_together() {
    let setting = Setting::new();
    let model = student();
    let fit = |trainer: Trainer<'_>| trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap_err().to_string();
    let error = fit(Trainer::new(&model, distilling(1)).unwrap());
    assert!(error.contains("wants a teacher"), "{error}");
    let error = fit(Trainer::new(&model, config(1)).unwrap().with_teacher(&teacher(), TeacherConfig::default()));
    assert!(error.contains("does not look at the teacher"), "{error}");
    // Prepared data carries its teacher along.
    let (recipe, teacher) = (distilling(1), teacher());
    let data = TrainData::prepare(&model, &recipe, &setting.split, setting.path(), None, |_| {}).unwrap();
    assert!(Trainer::new(&model, recipe.clone()).unwrap().fit_prepared(&data, |_| {}).is_err());
    let data = data.with_teacher(&teacher, &TeacherConfig::default(), &recipe, setting.path(), |_| {}).unwrap();
    assert!(Trainer::new(&model, recipe).unwrap().fit_prepared(&data, |_| {}).unwrap().loss.is_finite());
}

#[test]
fn a_teacher_that_was_asked_before_is_not_asked_again() {
    let setting = Setting::new();
    let cache = setting.path().join("teacher.safetensors");
    let run = |teacher: &ClipModel, cache: Option<PathBuf>| {
        let (model, mut images) = (student(), 0);
        let teaching = TeacherConfig { cache, ..TeacherConfig::default() };
        let count = |p: &Progress| {
            images += usize::from(matches!(p, Progress::Pooling { half: Half::Image, .. }));
        };
        let trainer = Trainer::new(&model, distilling(1)).unwrap().with_teacher(teacher, teaching);
        trainer.fit(&setting.split, setting.path(), None, count).unwrap();
        (values(&model), images)
    };
    let (plain, asked) = run(&teacher(), None);
    assert!(asked > 0);
    assert_eq!(run(&teacher(), Some(cache.clone())), (plain.clone(), asked));
    assert_eq!(run(&teacher(), Some(cache.clone())), (plain.clone(), 0));
    // Another teacher's rows are no use, and are made anew.
    let other = golden("siglip").with_trainable(|_| false).unwrap();
    let (found, asked) = run(&other, Some(cache.clone()));
    assert!(asked > 0 && found != plain);
    assert_eq!(run(&other, Some(cache.clone())), (found, 0));
    // Nor are those of other captions.
    let mut csv = String::from("image,caption,split\n");
    (0..COUNT).for_each(|i| csv += &format!("{i}.png,the dog,train\n"));
    std::fs::write(setting.path().join("other.csv"), csv).unwrap();
    let split = PairDataset::from_csv(setting.path().join("other.csv")).unwrap().split("train").unwrap();
    let (model, mut asked) = (student(), 0);
    let teaching = TeacherConfig { cache: Some(cache.clone()), ..TeacherConfig::default() };
    let trainer = Trainer::new(&model, distilling(1)).unwrap().with_teacher(&other, teaching);
    let count = |p: &Progress| asked += usize::from(matches!(p, Progress::Pooling { .. }));
    trainer.fit(&split, setting.path(), None, count).unwrap();
    assert!(asked > 0);
    // A file of something else is not written over.
    let weights = setting.path().join("weights.safetensors");
    std::fs::copy(Golden::named("clip").path.join("model.safetensors"), &weights).unwrap();
    let before = std::fs::read(&weights).unwrap();
    let teaching = TeacherConfig { cache: Some(weights.clone()), ..TeacherConfig::default() };
    let trainer = Trainer::new(&model, distilling(1)).unwrap().with_teacher(&other, teaching);
    let error = trainer.fit(&split, setting.path(), None, |_| {}).unwrap_err().to_string();
    assert!(error.contains("weights.safetensors") && error.contains("no file of a teacher's rows"), "{error}");
    assert!(std::fs::read(&weights).unwrap() == before);
}

#[test]
fn an_image_that_cannot_be_read_has_no_teacher_either() {
    let setting = Setting::new();
    std::fs::write(setting.path().join("3.png"), "no image").unwrap();
    let cache = setting.path().join("rows.safetensors");
    let run = |view, cache| {
        let (model, mut skipped, mut asked) = (student(), 0, 0);
        let augment = "flip".parse().unwrap();
        let recipe = TrainConfig { batch_size: COUNT, augment, ..distilling(2) };
        let trainer = Trainer::new(&model, recipe).unwrap();
        let trainer = trainer.with_teacher(&teacher(), TeacherConfig { view, cache });
        let listen = |p: &Progress| match p {
            Progress::Skipped(_) => skipped += 1,
            Progress::Pooling { half: Half::Image, .. } => asked += 1,
            _ => {}
        };
        let report = trainer.fit(&setting.split, setting.path(), None, listen).unwrap();
        assert_eq!((report.skipped.len(), report.skipped[0].name.as_str(), skipped), (1, "3.png", 1));
        assert!(report.loss.is_finite() && report.geometry.is_some());
        (values(&model), asked)
    };
    let (plain, asked) = run(TeacherView::Plain, None);
    assert!(asked > 0);
    assert!(run(TeacherView::Plain, Some(cache.clone())) == (plain.clone(), asked));
    assert!(run(TeacherView::Plain, Some(cache.clone())) == (plain.clone(), 0));
    assert!(run(TeacherView::Same, None).0 != plain);
}

#[test]
fn a_teacher_may_see_the_views_that_its_student_sees() {
    let setting = Setting::new();
    let run = |view, workers| {
        let model = student();
        let recipe = TrainConfig { augment: "flip".parse().unwrap(), workers, ..distilling(2) };
        let teaching = TeacherConfig { view, cache: None };
        let trainer = Trainer::new(&model, recipe).unwrap().with_teacher(&teacher(), teaching);
        trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap();
        values(&model)
    };
    let same = run(TeacherView::Same, 1);
    assert!(same != run(TeacherView::Plain, 1));
    assert!(same == run(TeacherView::Same, 4), "the number of workers matters");
}

#[test]
fn a_teacher_looks_once_at_views_that_come_again() {
    let setting = Setting::new();
    let cache = setting.path().join("rows.safetensors");
    let run = |views, epochs, cache| {
        let (model, mut asked) = (student(), 0);
        let recipe = TrainConfig { augment: "resized-crop=0.3,flip".parse().unwrap(), views, ..distilling(epochs) };
        let teaching = TeacherConfig { view: TeacherView::Same, cache };
        let trainer = Trainer::new(&model, recipe).unwrap().with_teacher(&teacher(), teaching);
        let count = |p: &Progress| asked += usize::from(matches!(p, Progress::Pooling { half: Half::Image, .. }));
        trainer.fit(&setting.split, setting.path(), None, count)?;
        Ok::<_, diptych::Error>((model, asked))
    };
    // As long as no view comes again, it is no matter when the teacher looks.
    let (kept, _) = run(Some(3), 3, None).unwrap();
    let (live, _) = run(None, 3, None).unwrap();
    assert!(distance(&kept, &live) < 1e-5, "{}", distance(&kept, &live));
    // When they come again, it is.
    let (again, asked) = run(Some(2), 3, Some(cache.clone())).unwrap();
    assert!(distance(&again, &live) > 1e-4 && asked > 0);
    let (read, asked) = run(Some(2), 3, Some(cache.clone())).unwrap();
    assert!(values(&read) == values(&again) && asked == 0);
    // Other views are made anew, and views without number cannot be kept.
    assert!(run(Some(3), 3, Some(cache.clone())).unwrap().1 > 0);
    let error = run(None, 3, Some(cache)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("how many views"), "{error}");
}

#[test]
fn what_cannot_be_compared_is_refused_before_the_teacher_runs() {
    let setting = Setting::new();
    let (model, other) = (student(), teacher());
    let (text, image) = (other.text_encoder().clone(), other.image_encoder().clone());
    let other = ClipModel::from_encoders(text, image, model.config().projection.embed_dim + 1).unwrap();
    let wide = |features| {
        let loss = Loss::Distill(DistillLoss::new(None).with_weights(1.0, features));
        let trainer = Trainer::new(&model, TrainConfig { loss, ..config(1) }).unwrap();
        let mut asked = 0;
        let count = |p: &Progress| asked += usize::from(matches!(p, Progress::Pooling { .. }));
        let run =
            trainer.with_teacher(&other, TeacherConfig::default()).fit(&setting.split, setting.path(), None, count);
        let error = run.unwrap_err().to_string();
        assert_eq!(asked, 0, "{error}");
        error
    };
    assert!(wide(f64::NAN).contains("NaN"));
    assert!(wide(1.0).contains("project the student"));
}
