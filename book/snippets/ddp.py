model = torch.nn.parallel.DistributedDataParallel(model)

for images, targets in batches:

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model(images), targets)
        loss.backward()
        return loss

    # None: all processes climb the mean gradient, as one process with the whole batch;
    # model: each climbs its own, with one exchange of gradients a step
    optimizer.step(closure, local=model if each_its_own else None)
