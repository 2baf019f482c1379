//! Every loss against PyTorch: values and the gradients of images, texts, scale and bias.

mod common;

use common::{Golden, relative_error};
use diptych::candle::{Device, Tensor, Var};
use diptych::loss::{
    ClipLoss, DistillLoss, HardNegativeLoss, Loss, MatryoshkaLoss, Pairs, Positives, SigLipLoss, Teacher,
};

fn groups(golden: &Golden, name: &str) -> Vec<u64> {
    golden.tensors[name].to_vec1::<i64>().unwrap().iter().map(|&id| id as u64).collect()
}

/// What a case hands over besides images, texts and scale.
#[derive(Default)]
struct Case {
    texts: Option<&'static str>,
    bias: bool,
    groups: bool,
    teacher: Option<(&'static str, &'static str)>,
}

fn check(name: &str, loss: Loss, case: Case) {
    let golden = Golden::named("losses");
    let var = |name: &str| Var::from_tensor(&golden.tensors[name]).unwrap();
    let (images, texts) = (var("images"), var(case.texts.unwrap_or("texts")));
    let (scale, bias) = (var("scale"), var("bias"));
    let positives = Positives::from_groups(&groups(&golden, "image_groups"), &groups(&golden, "text_groups"));
    let teacher = case.teacher.map(|(images, texts)| Teacher {
        image_embeds: golden.tensors[images].clone(),
        text_embeds: golden.tensors[texts].clone(),
        logit_scale: 11.0,
        patches: None,
    });
    let pairs = Pairs {
        logit_bias: case.bias.then_some(bias.as_tensor()),
        positives: case.groups.then_some(&positives),
        teacher: teacher.as_ref(),
        ..Pairs::new(&images, &texts, &scale)
    };
    let value = loss.of(&pairs).unwrap();
    let error = relative_error(&value, &golden.tensors[&format!("{name}.loss")]);
    assert!(error < 2e-6, "{name}: the loss is {value}, off by {error:.1e}");
    let grads = value.backward().unwrap();
    for (key, var) in [("images", &images), ("texts", &texts), ("scale", &scale), ("bias", &bias)] {
        if key == "bias" && !case.bias {
            continue;
        }
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name}: no gradient of {key}"));
        let expected = &golden.tensors[&format!("{name}.{key}")];
        // A bias cancels in cross-entropy: its gradient is zero but for rounding.
        let size = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        if size < 1e-6 {
            let found = grad.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(found < 1e-6, "{name}: gradient of {key} is {found}");
            continue;
        }
        let error = relative_error(grad, expected);
        assert!(error < 2e-5, "{name}: gradient of {key} off by {error:.1e}");
    }
}

#[test]
fn cross_entropy_equals_pytorch() {
    let (plain, smooth) = (ClipLoss::new(), |by| Loss::Clip(ClipLoss::new().with_label_smoothing(by)));
    check("clip", Loss::Clip(plain), Case::default());
    check("clip_smooth", smooth(0.1), Case::default());
    check("clip_negatives", Loss::Clip(plain), Case { texts: Some("more_texts"), ..Case::default() });
}

#[test]
fn cross_entropy_with_several_captions_equals_pytorch() {
    let case = || Case { texts: Some("more_texts"), bias: true, groups: true, ..Case::default() };
    check("clip_groups", Loss::default(), case());
    check("clip_groups_smooth", Loss::Clip(ClipLoss::new().with_label_smoothing(0.2)), case());
}

#[test]
fn the_sigmoid_loss_equals_open_clip_and_pytorch() {
    let case = || Case { bias: true, ..Case::default() };
    for chunk in [1, 4, 100] {
        check("siglip", Loss::SigLip(SigLipLoss::new().with_chunk(chunk)), case());
        let many = Case { texts: Some("more_texts"), groups: true, ..case() };
        check("siglip_groups", Loss::SigLip(SigLipLoss::new().with_chunk(chunk)), many);
        check("siglip_smooth", Loss::SigLip(SigLipLoss::new().with_chunk(chunk).with_label_smoothing(0.1)), case());
    }
}

#[test]
fn hard_negatives_weigh_as_in_the_paper() {
    check("hard", Loss::HardNegative(HardNegativeLoss::new(0.3)), Case::default());
    check("hard_alpha", Loss::HardNegative(HardNegativeLoss::new(0.7).with_alpha(0.6)), Case::default());
    // Without weights it is the plain loss.
    check("clip", Loss::HardNegative(HardNegativeLoss::new(0.0)), Case::default());
}

#[test]
fn distillation_equals_pytorch() {
    let case = |teacher| Case { teacher: Some(teacher), ..Case::default() };
    check("distill_logits", Loss::Distill(DistillLoss::new(None)), case(("teacher_images", "teacher_texts")));
    let all = DistillLoss::new(Loss::default()).with_weights(0.5, 3.0);
    check("distill_all", Loss::Distill(all), case(("near_images", "near_texts")));
}

#[test]
fn matryoshka_equals_the_sum_over_widths() {
    let mut loss = MatryoshkaLoss::new(Loss::SigLip(SigLipLoss::new()), &[4, 10, 16]);
    loss.widths = vec![(4, 0.5), (10, 1.0), (16, 2.0)];
    check("matryoshka", Loss::Matryoshka(loss), Case { bias: true, ..Case::default() });
}

#[test]
fn a_loss_is_a_line_of_a_recipe() {
    let loss = Loss::Matryoshka(MatryoshkaLoss::new(Loss::Distill(DistillLoss::new(Loss::default())), &[2, 4]));
    let text = serde_json::to_string(&loss).unwrap();
    assert_eq!(serde_json::from_str::<Loss>(&text).unwrap(), loss, "{text}");
    assert!(loss.wants_teacher() && !Loss::default().wants_teacher());
    assert_eq!(serde_json::from_str::<Loss>(r#"{"name":"sig_lip"}"#).unwrap(), Loss::SigLip(SigLipLoss::new()));
}

#[test]
fn extreme_logits_stay_finite() {
    let rows = |values: &[[f32; 2]; 2]| Var::new(values, &Device::Cpu).unwrap();
    let (images, texts) = (rows(&[[1.0, 0.0], [0.0, 1.0]]), rows(&[[-1.0, 0.0], [0.0, -1.0]]));
    let scale = Var::new(1e4f32, &Device::Cpu).unwrap();
    let losses = [
        Loss::Clip(ClipLoss::new().with_label_smoothing(0.1)),
        Loss::SigLip(SigLipLoss::new()),
        Loss::HardNegative(HardNegativeLoss::new(0.5)),
    ];
    for loss in losses {
        let value = loss.of(&Pairs::new(&images, &texts, &scale)).unwrap();
        assert!(value.to_scalar::<f32>().unwrap().is_finite(), "{loss:?}");
        let grads = value.backward().unwrap();
        let sum = grads.get(&images).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(sum.is_finite() && sum > 0.0, "{loss:?}: {sum}");
    }
}

#[test]
fn constants_out_of_range_are_refused_by_name() {
    let rows = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
    let scale = Tensor::new(2f32, &Device::Cpu).unwrap();
    let pairs = Pairs::new(&rows, &rows, &scale);
    let refused = [
        (Loss::Clip(ClipLoss::new().with_label_smoothing(1.0)), "label_smoothing"),
        (Loss::SigLip(SigLipLoss::new().with_label_smoothing(-0.1)), "label_smoothing"),
        (Loss::HardNegative(HardNegativeLoss::new(f64::NAN)), "beta"),
        (Loss::HardNegative(HardNegativeLoss::new(0.1).with_alpha(0.0)), "alpha"),
        (Loss::Distill(DistillLoss::new(None)), "teacher"),
        (Loss::Matryoshka(MatryoshkaLoss::new(Loss::default(), &[3])), "widths"),
        (Loss::Matryoshka(MatryoshkaLoss::new(Loss::default(), &[])), "widths"),
    ];
    for (loss, argument) in refused {
        let error = loss.of(&pairs).unwrap_err().to_string();
        assert!(error.starts_with(argument), "{error}");
    }
}
