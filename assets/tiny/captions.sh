#!/bin/sh
# The captions that the bundled model was trained on: sh captions.sh DATA > captions.csv
# DATA holds flickr8k, caltech101 and flowers, each with its csv file; image names come out relative to DATA.
# Of Flickr8k: its split train, and test to measure on. Of the labelled sets: the split train, at most 150 images a class,
# each with three prompts made of the class's name.
set -eu
data=$1
echo 'image,caption,split'
sed -n -e '1d' -e '/,train\r\{0,1\}$/p' -e '/,test\r\{0,1\}$/p' "$data/flickr8k/captions.csv" | sed 's|^|flickr8k/images/|'
for set in caltech101 flowers; do
  awk -F, -v set="$set" '
    { sub(/\r$/, "") }
    $3 == "train" && count[$2]++ < 150 {
      name = tolower($2); gsub(/_/, " ", name)
      if (name == "faces easy" || name == "faces") name = "face"
      if (name == "background google") next
      sub(/^motorbikes$/, "motorbike", name); sub(/^airplanes$/, "airplane", name); sub(/^leopards$/, "leopard", name)
      sub(/^car side$/, "car", name); sub(/^roses$/, "rose", name); sub(/^sunflowers$/, "sunflower", name)
      sub(/^tulips$/, "tulip", name); sub(/ (body|face|head)$/, "", name)
      print set "/" $1 ",a photo of a " name ",train"
      print set "/" $1 ",a picture of a " name ",train"
      print set "/" $1 "," name ",train"
    }' "$data/$set/labels.csv"
done
