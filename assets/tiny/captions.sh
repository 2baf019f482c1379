#!/bin/sh
# The captions that the bundled model was made with.
#   sh captions.sh DATA > captions.csv             its teacher's: what is on the photos
#   sh captions.sh DATA words.txt > captions.csv   its own: the same, and words that no photo shows; --distill-only asks for none
# DATA holds flickr8k, caltech101 and flowers, each with its csv file; image names come out relative to DATA.
# Of Flickr8k: its split train, and test to measure on. Of the labelled sets: the split train, with prompts made of the folder's name,
# of that name in plain words, and of the kinds of thing that kinds.txt says it is.
set -eu
data=$1
here=$(dirname "$0")
echo 'image,caption,split'
sed -n -e '1d' -e '/,train\r\{0,1\}$/p' -e '/,test\r\{0,1\}$/p' "$data/flickr8k/captions.csv" | sed 's|^|flickr8k/images/|'
for set in caltech101 flowers; do
  awk -F, -v set="$set" '
    { sub(/\r$/, "") }
    NR == FNR { kinds[$1] = $0; next }
    $3 == "train" {
      folder = tolower($2); gsub(/_/, " ", folder)
      name = folder
      sub(/^faces( easy)?$/, "face", name); sub(/^car side$/, "car", name); sub(/^water lilly$/, "water lily", name)
      sub(/^(motorbikes|airplanes|leopards|roses|sunflowers|tulips)$/, substr(name, 1, length(name) - 1), name)
      sub(/ (body|head)$/, "", name); if (name == "cougar face") name = "cougar"
      row = set "/" $1
      print row ",a photo of a " folder ",train"
      print row ",a photo of a " name ",train"
      print row "," name ",train"
      count = split(kinds[$2], kind, ",")
      for (i = 2; i <= count; i++) print row ",a photo of a " kind[i] ",train"
    }' "$here/kinds.txt" "$data/$set/labels.csv"
done
if [ $# -gt 1 ]; then
  # A word for each photo of Flickr8k, bare and as a prompt in turn.
  awk -F, '
    { sub(/\r$/, "") }
    NR == FNR { words[n++] = $1; next }
    $NF == "train" && !seen[$1]++ {
      prompt = int(i / n) % 2 ? "" : "a photo of a "
      print "flickr8k/images/" $1 "," prompt words[i++ % n] ",train"
    }' "$2" "$data/flickr8k/captions.csv"
fi
