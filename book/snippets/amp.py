for images, targets in batches:
    optimizer.zero_grad()
    with torch.autocast(device, dtype):
        loss = loss_of(model(images), targets)
    scaler.scale(loss).backward()
    optimizer.first_step(
        zero_grad=True
    )  # the climb does not depend on the scale

    with torch.autocast(device, dtype):
        loss = loss_of(model(images), targets)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  # only to clip, and only here
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    scaler.step(
        optimizer
    )  # back to the weights; steps, or skips after an overflow
    scaler.update()
