"""What the main job calls: configs, engine, run folder, planning, and the step itself."""
