# Sourced by the scripts beside it: which TPU they speak of.
#
#   NAME   of the TPU VM (and of its queued resource)
#   ZONE   such as us-east5-b
#   TYPE   accelerator type, such as v5p-128 or v6e-64
#   IMAGE  runtime version (default: chosen by TYPE)

: "${NAME:?set NAME, the name of the TPU VM}"
: "${ZONE:?set ZONE, such as us-east5-b}"

on_every_worker() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}
