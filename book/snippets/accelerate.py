from accelerate import Accelerator

accelerator = Accelerator(mixed_precision=precision)
model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

for images, targets in batches:

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model(images), targets)
        accelerator.backward(loss)
        return loss

    optimizer.step(closure)
