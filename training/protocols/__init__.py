"""Published protocols: the long-tailed lists VOC-LT and COCO-LT, and the few-shot splits."""
