"""What all trainings share: loop, data, flags."""
