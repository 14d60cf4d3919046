import saddlebook as sb
import torch

# was: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
optimizer = sb.SAM(
    model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9
)
# was: torch.nn.CrossEntropyLoss()
loss_of = sb.losses.VSLoss.from_labels(labels)

for images, targets in batches:

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model(images), targets)
        loss.backward()
        return loss

    # with freeze=model batch statistics move in the first pass only
    optimizer.step(closure)
