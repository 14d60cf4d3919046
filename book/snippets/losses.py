from collections import Counter

import saddlebook as sb
import torch

# after a plain linear layer; the counts in the order of the labels
vs = sb.losses.VSLoss(Counter(labels), gamma=0.3, tau=1.0)
# after sb.models.CosineHead, whose outputs are cosines
ldam = sb.losses.LDAMLoss.from_labels(labels, max_margin=0.5)
# torch's own loss, with weights by the effective number of images
weight = sb.losses.class_weights(Counter(labels), beta=0.9999)
ce = torch.nn.CrossEntropyLoss(weight)
