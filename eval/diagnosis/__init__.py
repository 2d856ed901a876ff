"""What is dear to measure by depth: costs of leaving layers out, quantisation, similarity of the layers."""
