"""What a run is: recipe, command line and DeepSpeed JSON, checked before anything is built."""
